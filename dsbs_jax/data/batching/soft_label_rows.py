# SPDX-License-Identifier: Apache-2.0
"""The soft labels of a task's examples, in the ids that the student writes."""

from dsbs_jax import contract
from dsbs_jax.data import register, soft_labels
from dsbs_jax.data.prepared import store, tokens, views

# Forms of task whose target is a label and nothing else, and their mixture.
FORMS = ('finetune', 'label', 'dsbs')


def load(
  name: str, split: str, source: tokens.Source, *, temperature: float
) -> soft_labels.SoftTargets:
  """The soft targets of a task's, or a mixture's, labels.

  Raises:
    UserError: the benchmark has no closed set of labels, or had others when it
      was prepared, or the prepared examples have no soft label.
  """
  parsed = contract.parse_task_name(name)
  known = register.benchmark(parsed.benchmark, data_dir=source.data_dir)
  if not known.labels:
    raise contract.UserError(
      f'SOFT_LABEL_WEIGHT is set, but {known.name!r} has no closed set of'
      ' labels, expected one that the probabilities are of. Leave it out.'
    )
  task = tokens.load(views.tasks_of(parsed)[0], split, source)
  prepared = store.read(known.name, source.data_dir)
  then = prepared.metadata.get(store.LABELS, list(known.labels))
  if then != list(known.labels):
    raise contract.UserError(
      f'the soft labels of {known.name!r} in {source.data_dir} are'
      f' probabilities of {then}, but its labels are {list(known.labels)} now.'
      ' Prepare it again with --overwrite.'
    )
  found = soft_labels.soft_targets(
    [task.targets[i] for i in range(len(task))],
    [example.label_probs for example in prepared.examples(split)],
    [
      [*task.vocabulary.encode(label), contract.EOS_ID]
      for label in known.labels
    ],
    temperature=temperature,
  )
  if not found.num_examples:
    raise contract.UserError(
      f'SOFT_LABEL_WEIGHT is set, but none of the {len(task):,} examples of'
      f' {task.name} {split} in {source.data_dir} has a soft label. Ask the LLM'
      ' with dsbs extract --logprobs=20, and prepare the benchmark again with'
      ' --overwrite.'
    )
  return found
