# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints: all that a resume needs, in folders T5X can read.

`MODEL_DIR/checkpoint_<step>/` holds three items and `checksums.json`:

  state/     the tree {target: params, state: {step, param_states}}, the layout
             in which T5X keeps its own, so `t5x.eval` takes it as it is;
             with LoRA, target is merged, and {lora: {adapters, kernels}},
             the targeted kernels as they began, is for a resume
  position/  where the loader stands, and metrics not yet written (JSON)
  run/       what the run was made of: settings, vocabulary, versions (JSON)

Saves run in the background and appear atomically. A state is saved before it is
evaluated; its scores are added as a fourth item, `metrics/`. The last few
checkpoints and the best on validation are kept; the others are renamed before
they are deleted, so that no kill leaves half of one. Nothing is ordered by a
clock.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from dsbs_jax import contract
from dsbs_jax.core import lora, steps
from dsbs_jax.interop import checksums
from dsbs_jax.runs import (
  checkpoint_folders,
  checkpoint_parts,
  checkpoint_scores,
)
from dsbs_jax.runtime import files, help_page

_TRASH = 'deleted_checkpoints'
_all_finite = jax.jit(steps.all_finite)
_ITEMS = ('state', 'position', 'run')
# Packages whose numerics or formats a run depends on.
_VERSIONED = ('dsbs_jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


class Checkpoints:
  """Saves and restores the checkpoints of one run.

  Args:
    model_dir: the run's folder.
    keep: how many of the newest checkpoints stay, besides the best.
  """

  def __init__(self, model_dir: str | pathlib.Path, *, keep: int = 2):
    self.model_dir = pathlib.Path(model_dir).absolute()
    self._saving = self.model_dir  # the checkpoint that is being saved
    self._empty_trash()
    self._accuracies = checkpoint_scores.accuracies(
      checkpoint_folders.folders(self.model_dir)
    )
    self._scores = {}  # of checkpoints that may not be on disk yet
    self._policy = checkpoint_scores.NewestAndBest(keep, self._accuracies)
    options = ocp.CheckpointManagerOptions(
      step_prefix=checkpoint_folders.PREFIX,
      cleanup_tmp_directories=True,
      todelete_subdir=_TRASH,
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._write_checksums,
        barrier_sync_fn=checkpoint_parts.barrier(self.model_dir),
      ),
      preservation_policy=self._policy,
    )
    self._manager = ocp.CheckpointManager(
      self.model_dir, item_names=_ITEMS, options=options
    )

  def _write_checksums(self) -> None:
    """Orbax calls this when all is written, before it renames the folder."""
    (folder,) = self.model_dir.glob(f'{self._saving.name}.*tmp*')
    checksums.write(folder)

  def _folder(self, step: int) -> pathlib.Path:
    return self.model_dir / f'{checkpoint_folders.PREFIX}_{step}'

  def _empty_trash(self) -> None:
    if jax.process_index() == 0 and (self.model_dir / _TRASH).exists():
      shutil.rmtree(self.model_dir / _TRASH)

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint, which may not be on disk yet."""
    return self._manager.latest_step()

  def save(
    self,
    state: steps.TrainState,
    *,
    position: Mapping[str, Any],
    run: Mapping[str, Any],
    params: Any = None,
  ) -> None:
    """Starts to save; returns once the arrays are copied from the devices.

    Args:
      state: the state after `state.step` steps.
      position: where the loader stands after as many batches (JSON).
      run: JSON facts that a resume compares.
      params: the network's, which readers get; None: the state's own. With
        LoRA they are not.

    Raises:
      UserError: the state is not finite, or this or the previous save could
        not be written.
    """
    step = int(state.step)
    if not _all_finite(state):
      raise contract.UserError(
        f'after step {step:,} the parameters or the state of the optimizer are'
        f' not finite, so that nothing was saved. {self.describe_newest()}'
        ' Lower LEARNING_RATE.'
      )
    self.wait()
    self._empty_trash()
    self._saving = self._folder(step)
    checkpoint_parts.prepare(self._saving)
    with files.writing(self._saving):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(_as_tree(state, params)),
          position=ocp.args.JsonSave(dict(position)),
          run=ocp.args.JsonSave(
            {**run, 'versions': help_page.versions(_VERSIONED)}
          ),
        ),
        force=True,
      )

  def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
    """Adds an evaluation to its checkpoint as soon as that is on disk.

    A checkpoint that was the best until then and is not among the newest goes.

    Args:
      step: which checkpoint.
      scores: '<split>/<metric>' -> value; the accuracy on validation, or on
        the first split, chooses the best. {} adds nothing.
    """
    if scores:
      self._accuracies[step] = checkpoint_scores.accuracy(scores)
      self._scores[step] = dict(scores)
      self.check_for_errors()

  def _write_scores(self) -> None:
    """Writes what was added; all processes come here at the same time."""
    while self._scores:
      step, scores = self._scores.popitem()
      folder = self._folder(step)
      steps = sorted(self._manager.all_steps())
      if step not in steps or not folder.is_dir():
        continue  # its save has failed, or it was removed: told elsewhere
      if jax.process_index() == 0:
        checkpoint_scores.write(folder, scores)
      for old, stays in zip(steps, self._policy.stay(steps), strict=True):
        if not stays:
          self._manager.delete(old)

  def has_scores(self, step: int) -> bool:
    """Whether the evaluation of a checkpoint was added."""
    return checkpoint_scores.is_written(self._folder(step))

  def restore(
    self, step: int, like: steps.TrainState
  ) -> tuple[steps.TrainState, dict[str, Any]]:
    """Restores a checkpoint into these shapes, dtypes and shardings.

    Returns:
      The state, and the position that was saved with it.
    """
    tree = _as_tree(like)
    if like.frozen is not None:  # what is merged is not read back
      merged = jax.tree.map(
        lambda _: ocp.PLACEHOLDER, lora.base_kernels(like.frozen, like.params)
      )
      tree['target'] = lora.replace(tree['target'], merged)
    items = ocp.args.Composite(
      state=ocp.args.PyTreeRestore(
        tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
      ),
      position=ocp.args.JsonRestore(),
    )
    try:
      restored = self._manager.restore(step, args=items)
    except Exception as error:
      # Orbax raises exceptions of many types because of a file. They are other
      # bugs where the files still have the checksums they were saved with.
      folder = self._folder(step)
      if checksums.is_listed(folder) and not checksums.damage(folder):
        raise
      raise contract.UserError(
        f'{folder} cannot be read: {error}. Rename it to go on from the one'
        ' before, or put a copy in its place.'
      ) from error
    return _as_state(restored['state']), restored['position']

  def describe_newest(self) -> str:
    """Says which checkpoint on disk is the newest."""
    with contextlib.suppress(Exception):  # told by whoever asks
      self._manager.wait_until_finished()
    step = max(checkpoint_folders.folders(self.model_dir), default=None)
    if step is None:
      return f'There is no checkpoint in {self.model_dir}.'
    return f'The newest checkpoint is {self._folder(step)}.'

  def check_for_errors(self) -> None:
    """Raises if a save has failed; does not wait for one under way.

    One that has ended gets its scores.
    """
    alone = jax.process_count() == 1
    if alone and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns when all is on disk; raises if a save fails."""
    with files.writing(self._saving):
      self._manager.wait_until_finished()
    self._write_scores()

  def close(self) -> None:
    """Finishes the save under way and lets go of the folder."""
    self.wait()
    with files.writing(self._saving):
      self._manager.close()
    self._empty_trash()


def _as_tree(state: steps.TrainState, params: Any = None) -> dict[str, Any]:
  """What is stored of a state; `params` are what readers get."""
  tree = {
    'target': state.params,
    'state': {'step': state.step, 'param_states': state.opt_state},
  }
  if state.frozen is not None:
    tree['target'] = state.frozen if params is None else params
    kernels = lora.base_kernels(state.frozen, state.params)
    tree['lora'] = {'adapters': state.params, 'kernels': kernels}
  return tree


def _as_state(tree: Mapping[str, Any]) -> steps.TrainState:
  params, frozen = tree['target'], None
  if 'lora' in tree:
    frozen = lora.replace(params, tree['lora']['kernels'])
    params = tree['lora']['adapters']
  return steps.TrainState(
    step=tree['state']['step'],
    params=params,
    opt_state=tree['state']['param_states'],
    frozen=frozen,
  )


def shapes_with_shardings(shapes: Any, shardings: Any) -> Any:
  """Adds shardings to a tree of ShapeDtypeStructs, to restore into."""
  return jax.tree.map(
    lambda shape, sharding: shape.update(sharding=sharding), shapes, shardings
  )
