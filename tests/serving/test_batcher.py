# SPDX-License-Identifier: Apache-2.0
"""Who shares a batch: the oldest goes first, with inputs no longer than it."""

import asyncio
import concurrent.futures
import threading

import pytest

from dsbs_jax.data import task_forms
from dsbs_jax.inference import input_lines, length_buckets, predictor
from dsbs_jax.serving import batcher, prometheus, request_checks, warmup
from tests.inference import small_student
from tests.serving import serving_stub

SHAPES = length_buckets.CompiledShapes((1, 4), (16, 64), (8,), (1,))
MAX_WAIT = 1000.0  # seconds, which pass only where a test skips them


class Student:
  """Predicts in the model's thread; 'hold' keeps it busy until `release`."""

  def __init__(self):
    self.batches = []
    self.held, self.release = threading.Event(), threading.Event()

  def __call__(self, inputs, rationales):
    texts = [one.text for one in inputs]
    self.batches.append(texts)
    if texts[0] == 'hold':
      self.held.set()
      assert self.release.wait(300)
    return [predictor.Prediction(text, 1.0, 'why') for text in texts]


def run(scenario):
  """Runs a scenario beside a student; returns the batches that it saw."""
  student = Student()

  async def main():
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
      queue = batcher.Batcher(
        student,
        thread,
        shapes=SHAPES,
        max_queue=100,
        max_wait=MAX_WAIT,
        metrics=prometheus.ServerMetrics(SHAPES.batch_sizes),
      )
      work = asyncio.create_task(queue.run())
      await scenario(queue, student)
      work.cancel()

  with asyncio.Runner(loop_factory=serving_stub.SkippingLoop) as runner:
    runner.run(main())
  return student.batches


def submit(queue, *texts, rationales=True, num_tokens=10):
  inputs = [
    request_checks.CheckedInput(input_lines.ModelInput(text), num_tokens)
    for text in texts
  ]
  return asyncio.create_task(queue.submit(inputs, rationales=rationales))


async def hold(queue, student):
  """Keeps the student busy."""
  task = submit(queue, 'hold')
  await asyncio.to_thread(student.held.wait)
  return task


async def arrive():
  """Lets submitted inputs reach the queue."""
  for _ in range(3):
    await asyncio.sleep(0)


def test_what_queues_up_while_the_model_is_busy_goes_together():
  async def scenario(queue, student):
    tasks = [await hold(queue, student)]
    tasks += [submit(queue, f'{i}a', f'{i}b') for i in range(3)]
    await arrive()
    student.release.set()
    await asyncio.gather(*tasks[:3])
    asyncio.get_running_loop().skip(MAX_WAIT)
    found = await asyncio.gather(*tasks)
    labels = [[one.label for one in predictions] for predictions in found]
    assert labels == [['hold'], ['0a', '0b'], ['1a', '1b'], ['2a', '2b']]

  assert run(scenario) == [['hold'], ['0a', '0b', '1a', '1b'], ['2a', '2b']]


def test_long_inputs_wait_for_a_batch_of_their_own_but_are_not_passed_twice():
  async def scenario(queue, student):
    tasks = [await hold(queue, student)]
    tasks.append(submit(queue, 'short 1', 'short 2', num_tokens=16))
    tasks.append(submit(queue, 'long', num_tokens=17))
    tasks.append(submit(queue, 'short 3', 'short 4', 'short 5'))
    await arrive()
    student.release.set()
    await tasks[1]
    asyncio.get_running_loop().skip(MAX_WAIT)
    await asyncio.gather(*tasks)

  assert run(scenario)[1:] == [
    ['short 1', 'short 2', 'short 3', 'short 4'],
    ['long', 'short 5'],
  ]


def test_inputs_wait_for_others_where_there_are_others():
  async def scenario(queue, student):
    del student
    loop = asyncio.get_running_loop()
    # The first is alone, 'bc' comes after a lonely one, and a full batch waits
    # for nobody: none of them needs the clock.
    for texts in ('a', 'bc', 'defg'):
      await submit(queue, *texts)
    late = [submit(queue, 'h')]  # after a batch of several
    await arrive()
    late.append(submit(queue, 'i'))
    await arrive()
    assert not any(task.done() for task in late)
    loop.skip(MAX_WAIT)
    await asyncio.gather(*late)
    alone = submit(queue, 'j')
    await arrive()
    loop.skip(MAX_WAIT)
    await alone
    await submit(queue, 'k')  # after a lonely one again

  assert run(scenario) == [list(t) for t in ('a', 'bc', 'defg', 'hi', 'j', 'k')]


def test_no_input_waits_longer_because_others_come():
  async def scenario(queue, student):
    loop = asyncio.get_running_loop()
    held = await hold(queue, student)
    old = submit(queue, 'old')
    await arrive()
    loop.skip(0.9 * MAX_WAIT)
    new = submit(queue, 'new')
    await arrive()
    student.release.set()
    await held
    loop.skip(0.2 * MAX_WAIT)
    async with asyncio.timeout(300):
      await asyncio.gather(old, new)

  assert run(scenario) == [['hold'], ['old', 'new']]


def test_rationales_go_to_those_who_asked():
  async def scenario(queue, student):
    tasks = [await hold(queue, student)]
    tasks += [submit(queue, 'a'), submit(queue, 'b', rationales=False)]
    await arrive()
    student.release.set()
    asyncio.get_running_loop().skip(MAX_WAIT)
    _, (with_it,), (without,) = await asyncio.gather(*tasks)
    assert (with_it.rationale, without.rationale) == ('why', None)

  assert run(scenario) == [['hold'], ['a', 'b']]


def test_a_request_that_is_cancelled_takes_its_inputs_out():
  async def scenario(queue, student):
    held = await hold(queue, student)
    gone, kept = submit(queue, 'gone', 'too'), submit(queue, 'kept')
    await arrive()
    gone.cancel()
    student.release.set()
    asyncio.get_running_loop().skip(MAX_WAIT)
    await asyncio.gather(held, kept)
    assert gone.cancelled()

  assert run(scenario) == [['hold'], ['kept']]


def test_a_client_that_leaves_during_its_batch_takes_nobody_elses_answer():
  async def scenario(queue, student):
    gone, *kept = (submit(queue, text) for text in ('hold', 'a', 'b'))
    await asyncio.to_thread(student.held.wait)
    gone.cancel()
    student.release.set()
    found = await asyncio.gather(*kept)
    assert [one.label for (one,) in found] == ['a', 'b']

  assert run(scenario) == [['hold', 'a', 'b']]


def config(task, **options):
  return predictor.PredictorConfig(
    task=task,
    model=small_student.MODEL,
    prefixes=task_forms.prefixes('paper'),
    max_decode_len=20,
    **options,
  )


@pytest.mark.parametrize(
  ('predictor_config', 'max_choices', 'targets', 'options'),
  [
    # A space, the longest label, and the end.
    (config('parcels_gt_label', labels=('yes', 'no')), 0, (8,), (2,)),
    (config('parcels_gt_label', labels=('eight by', 'x')), 0, (12,), (2,)),
    (config('svamp_gt_label'), 0, (8, 24), (1,)),
    (config('cqa_gt_label'), 5, (8, 24), (1, 5)),
    (config('cqa_gt_label', score_labels=True), 5, (8, 24), (5,)),
    (config('parcels_gt_label', labels=('a', 'b')), 5, (8, 24), (2, 5)),
    # Behind 20 bytes that have no marker: ' [label]', ' yes' and the end.
    (config('parcels_gt_single', labels=('yes',)), 0, (8, 32, 48), (1,)),
    (config('svamp_gt_single'), 0, (8, 32), (2,)),
    # ' yes' and the marker that ends it, ' [rationale]'.
    (config('parcels_gt_answer_first', labels=('yes',)), 0, (16,), (1,)),
    (config('svamp_gt_answer_first'), 0, (8, 24), (1,)),
  ],
)
def test_every_shape_that_can_occur_is_compiled(
  predictor_config, max_choices, targets, options
):
  found = warmup.compiled_shapes(
    predictor_config,
    small_student.BYTES,
    batch_sizes=(1, 4),
    input_lengths=(16,),
    max_choices=max_choices,
  )
  assert (found.target_lengths, found.option_counts) == (targets, options)
  assert (found.batch_sizes, found.input_lengths) == ((1, 4), (16,))
