# SPDX-License-Identifier: Apache-2.0
"""Labels are found in what was generated, with what precedes them."""

from dsbs_jax.data import vocabularies
from dsbs_jax.run import drafts

BYTES = vocabularies.load('bytes')


def test_single_outputs_are_split_at_their_marker():
  ids = BYTES.encode('It is 3. [label] 3') + [1]
  draft = drafts.split([*ids, 0, 0], 'single', vocabulary=BYTES)
  assert draft.rationale == 'It is 3.'
  assert BYTES.decode(draft.stem) == 'It is 3. [label]'
  assert BYTES.decode(draft.said) == ' 3' and draft.said[-1] == 1
  three, four = drafts.options(draft, ('3', '4'), vocabulary=BYTES)
  assert three == ids and BYTES.decode(four) == 'It is 3. [label] 4'
  bare = drafts.split(BYTES.encode('so'), 'single', vocabulary=BYTES)
  assert (bare.said, bare.rationale) == ([], 'so')
  assert BYTES.decode(bare.stem) == 'so [label]'


def test_labels_without_rationale_are_the_whole_output():
  draft = drafts.split([*BYTES.encode('yes'), 1, 0], 'label', vocabulary=BYTES)
  assert (draft.stem, draft.rationale) == ([], None)
  assert draft.said == [*BYTES.encode('yes'), 1]
  assert drafts.options(draft, (), vocabulary=BYTES) == [draft.said]
  (no,) = drafts.options(draft, ('no',), vocabulary=BYTES)
  assert no == [*BYTES.encode('no'), 1]
