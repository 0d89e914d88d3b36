# SPDX-License-Identifier: Apache-2.0
"""Labels are found in what was generated, with what precedes them."""

from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import output_split

BYTES = vocabularies.load('bytes')


def test_single_outputs_are_split_at_their_marker():
  ids = BYTES.encode('It is 3. [label] 3') + [1]
  output = output_split.split([*ids, 0, 0], 'single', vocabulary=BYTES)
  assert output.rationale == 'It is 3.'
  assert BYTES.decode(output.prefix_ids) == 'It is 3. [label]'
  assert BYTES.decode(output.label_ids) == ' 3' and output.label_ids[-1] == 1
  three, four = output_split.option_ids(output, ('3', '4'), vocabulary=BYTES)
  assert three == ids and BYTES.decode(four) == 'It is 3. [label] 4'
  bare = output_split.split(BYTES.encode('so'), 'single', vocabulary=BYTES)
  assert (bare.label_ids, bare.rationale) == ([], 'so')
  assert BYTES.decode(bare.prefix_ids) == 'so [label]'


def test_the_last_marker_ends_a_rationale_that_holds_it_too():
  ids = BYTES.encode('After [label] is 3. [label] 3') + [1]
  output = output_split.split(ids, 'single', vocabulary=BYTES)
  assert output.rationale == 'After [label] is 3.'
  assert BYTES.decode(output.label_ids) == ' 3'
  assert output.prefix_ids + output.label_ids == ids


def test_outputs_with_the_answer_first_are_cut_behind_their_marker():
  first = {'form': 'answer_first', 'vocabulary': BYTES}
  label, why = BYTES.encode('3 [rationale]'), BYTES.encode(' It is 3.')
  output = output_split.split([*label, *why, 1, 0], **first)
  assert (output.prefix_ids, output.label_ids) == ([], label)
  assert output.rationale == 'It is 3.'
  assert output_split.option_ids(output, (), vocabulary=BYTES) == [label]
  three, four = output_split.option_ids(output, ('3', '4'), vocabulary=BYTES)
  assert three == label and BYTES.decode(four) == '4 [rationale]'
  bare = output_split.split([*BYTES.encode('so'), 1], **first)
  assert (bare.label_ids, bare.rationale) == ([*BYTES.encode('so'), 1], '')
  assert label[-len(output_split.stop_ids(**first)) :] == list(
    output_split.stop_ids(**first)
  )
  assert output_split.stop_ids('label', vocabulary=BYTES) == ()


def test_labels_without_rationale_are_the_whole_output():
  output = output_split.split(
    [*BYTES.encode('yes'), 1, 0], 'label', vocabulary=BYTES
  )
  assert (output.prefix_ids, output.rationale) == ([], None)
  assert output.label_ids == [*BYTES.encode('yes'), 1]
  assert output_split.option_ids(output, (), vocabulary=BYTES) == [
    output.label_ids
  ]
  (no,) = output_split.option_ids(output, ('no',), vocabulary=BYTES)
  assert no == [*BYTES.encode('no'), 1]
