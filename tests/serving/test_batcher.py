# SPDX-License-Identifier: Apache-2.0
"""Who is answered with whom: the oldest first, and no longer than it is."""

import asyncio
import concurrent.futures
import itertools
import threading
import time

import pytest

from dsbs_jax.data import forms
from dsbs_jax.inference import input_lines, length_buckets, predictor
from dsbs_jax.serving import batcher, prometheus, request_checks, warmup
from tests.serving import serving_process, serving_stub

SHAPES = length_buckets.CompiledShapes((1, 4), (16, 64), (8,), (1,))


def asked(text, num_tokens=10):
  return request_checks.CheckedInput(input_lines.ModelInput(text), num_tokens)


def run(scenario, *, max_wait=0.0, max_queue=100):
  """Runs a scenario beside a student; returns the batches that it saw.

  The first question, 'hold', keeps the student busy until `release` is set.
  """
  seen, release = [], threading.Event()

  def answer(batch, rationales):
    texts = [question.text for question in batch]
    seen.append(texts)
    if texts == ['hold']:
      assert release.wait(10)
    return [predictor.Prediction(text, 1.0, 'why') for text in texts]

  async def main():
    with concurrent.futures.ThreadPoolExecutor(1) as worker:
      batches = batcher.Batcher(
        answer,
        worker,
        shapes=SHAPES,
        max_queue=max_queue,
        max_wait=max_wait,
        metrics=prometheus.ServerMetrics(SHAPES.rows_of),
      )
      work = asyncio.create_task(batches.run())
      await scenario(batches, release)
      work.cancel()

  asyncio.run(main())
  return seen


def ask(batches, *texts, rationales=True, num_tokens=10):
  waiting = [asked(text, num_tokens) for text in texts]
  return asyncio.create_task(batches.ask(waiting, rationales=rationales))


async def held(batches):
  """Keeps the student busy."""
  task = ask(batches, 'hold')
  await asyncio.sleep(0.02)
  return task


def test_what_gathers_while_the_model_is_busy_goes_together():
  async def scenario(batches, release):
    tasks = [await held(batches)]
    tasks += [ask(batches, f'{i}a', f'{i}b') for i in range(3)]
    await asyncio.sleep(0)
    release.set()
    answers = await asyncio.gather(*tasks)
    labels = [[answer.label for answer in given] for given in answers]
    assert labels == [['hold'], ['0a', '0b'], ['1a', '1b'], ['2a', '2b']]

  assert run(scenario) == [['hold'], ['0a', '0b', '1a', '1b'], ['2a', '2b']]


def test_long_inputs_wait_for_a_batch_of_their_own_but_are_not_passed_twice():
  async def scenario(batches, release):
    tasks = [await held(batches)]
    tasks.append(ask(batches, 'short 1'))
    tasks.append(ask(batches, 'long', num_tokens=17))
    tasks.append(ask(batches, 'short 2', num_tokens=16))
    await asyncio.sleep(0)
    release.set()
    await tasks[1]
    tasks.append(ask(batches, 'short 3'))
    await asyncio.gather(*tasks)

  first, second, *rest = run(scenario)[1:]
  assert first == ['short 1', 'short 2']
  assert second[0] == 'long'  # with 'short 3', where that came in time


def test_questions_wait_for_others_where_there_are_others():
  async def scenario(batches, release):
    del release
    times = [time.monotonic()]
    for texts in ('a', 'bc', 'defg', 'h', 'i'):
      await ask(batches, *texts)
      times.append(time.monotonic())
    waited = [end - begin > 0.2 for begin, end in itertools.pairwise(times)]
    # 'bc' comes after a lonely one, a full batch waits for nobody, and 'h' for
    # the company that 'defg' had.
    assert waited == [False, False, False, True, False]
    first = ask(batches, 'j', 'k')
    await first
    late = [ask(batches, 'l')]
    await asyncio.sleep(0.02)
    late.append(ask(batches, 'm'))
    await asyncio.gather(*late)

  seen = run(scenario, max_wait=0.25)
  assert seen[:5] == [list(texts) for texts in ('a', 'bc', 'defg', 'h', 'i')]
  assert seen[5:] == [['j', 'k'], ['l', 'm']]


def test_rationales_go_to_those_who_asked():
  async def scenario(batches, release):
    tasks = [await held(batches)]
    tasks += [ask(batches, 'a'), ask(batches, 'b', rationales=False)]
    await asyncio.sleep(0)
    release.set()
    _, (with_it,), (without,) = await asyncio.gather(*tasks)
    assert (with_it.rationale, without.rationale) == ('why', None)

  run(scenario)


def test_a_request_that_is_cancelled_takes_its_questions_out():
  async def scenario(batches, release):
    hold = await held(batches)
    gone, kept = ask(batches, 'gone', 'too'), ask(batches, 'kept')
    await asyncio.sleep(0)
    gone.cancel()
    release.set()
    await asyncio.gather(hold, kept)
    assert gone.cancelled()

  assert run(scenario) == [['hold'], ['kept']]


def settings(task, **options):
  return predictor.PredictorConfig(
    task=task,
    model=serving_process.MODEL,
    prefixes=forms.prefixes('paper'),
    max_decode_len=20,
    **options,
  )


@pytest.mark.parametrize(
  ('answers', 'max_choices', 'targets', 'options'),
  [
    # A space, the longest label, and the end.
    (settings('parcels_gt_label', labels=('yes', 'no')), 0, (8,), (2,)),
    (settings('parcels_gt_label', labels=('eight by', 'x')), 0, (12,), (2,)),
    (settings('svamp_gt_label'), 0, (8, 24), (1,)),
    (settings('cqa_gt_label'), 5, (8, 24), (1, 5)),
    (settings('cqa_gt_label', score_labels=True), 5, (8, 24), (5,)),
    (settings('parcels_gt_label', labels=('a', 'b')), 5, (8, 24), (2, 5)),
    # Behind 20 bytes that have no marker: ' [label]', ' yes' and the end.
    (settings('parcels_gt_single', labels=('yes',)), 0, (8, 32, 48), (1,)),
    (settings('svamp_gt_single'), 0, (8, 32), (2,)),
    # ' yes' and the marker that ends it, ' [rationale]'.
    (settings('parcels_gt_answer_first', labels=('yes',)), 0, (16,), (1,)),
    (settings('svamp_gt_answer_first'), 0, (8, 24), (1,)),
  ],
)
def test_every_shape_that_can_occur_is_compiled(
  answers, max_choices, targets, options
):
  found = warmup.compiled_shapes(
    answers,
    serving_stub.BYTES,
    batch_sizes=(1, 4),
    input_lengths=(16,),
    max_choices=max_choices,
  )
  assert (found.targets_of, found.options_of) == (targets, options)
  assert (found.rows_of, found.inputs_of) == ((1, 4), (16,))
