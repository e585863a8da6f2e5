"""Checkpoints: the newest few and the best, saved beside the step, by Orbax."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from rich.filesize import decimal

from gsg_jax.errors import UserError
from gsg_jax.train_step import TrainState

# What Orbax raises where a file cannot be written or read.
_FAILURES = (OSError, ValueError, RuntimeError, KeyError)

# Bytes of a checkpoint besides the arrays, and of the logs.
_MARGIN = 2_000_000


class Checkpoints:
    """The checkpoints of one workdir; a context manager that waits for what is being saved.

    A save returns at once and is committed in the background by one rename, so that a process
    killed at any moment leaves the checkpoint before it whole.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 2, *, read_only: bool = False):
        """Opens DIR/checkpoints.

        Args:
          workdir: DIR.
          keep: how many of the newest to keep; the best by knn_top1 is kept besides.
          read_only: True neither makes nor cleans the folder.
        """
        policy = AnyPreservationPolicy(
            [
                LatestN(keep),
                BestN(
                    get_metric_fn=_score,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_score,  # without it no score is written, and a resumed run forgets the best
            create=not read_only,
            read_only=read_only,
        )
        self._folder = workdir / "checkpoints"
        try:
            self._manager = ocp.CheckpointManager(
                self._folder.resolve(),
                options=options,
                item_handlers=ocp.StandardCheckpointHandler(),
            )
        except _FAILURES as error:
            raise UserError(
                f"{self._folder} cannot be opened ({_reason(error)}): remove the checkpoint that "
                "is damaged, or give another --workdir"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type, *_) -> None:
        if error_type is None:
            self.close()
            return
        with contextlib.suppress(UserError):  # the first error is the one to tell
            self.close()

    def newest_step(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, knn_top1: float | None) -> None:
        """Starts saving the state of its step.

        Args:
          state: on the devices; copied before this returns, so that it may be donated.
          knn_top1: its figure of the k-NN monitor, where there is one.

        Raises:
          UserError: where this save, or the one before it, fails; a full disk, say.
        """
        self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        with self._explained():
            self._manager.save(
                int(state.step),
                args=ocp.args.StandardSave(state),
                metrics=None if knn_top1 is None else {"knn_top1": knn_top1},
            )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Restores the state of a step.

        Args:
          step: one that newest_step has named.
          like: arrays, or shapes, with the shapes, types and shardings to restore.

        Returns:
          The state.

        Raises:
          UserError: where the checkpoint is damaged, or of other shapes.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with self._read_explained(step):
            self._check_shapes(step, like.params)
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def restore_part(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Restores some groups of the state of a step, whatever else it holds.

        Args:
          step: one that newest_step has named.
          like: shapes with types and shardings, {group: tree}; of "params" and "batch_stats" some
            branches may be left out.

        Returns:
          The same tree with its arrays.

        Raises:
          UserError: where the checkpoint is damaged, or of other shapes.
        """
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        arguments = ocp.args.PyTreeRestore(
            item=like,
            restore_args=ocp.checkpoint_utils.construct_restore_args(like),
            partial_restore=True,
        )
        with self._read_explained(step), contextlib.closing(reader):
            self._check_shapes(step, like["params"])
            return reader.restore(self._folder.resolve() / str(step) / "default", args=arguments)

    def shapes(self, step: int, groups: Sequence[str]) -> dict[str, Any]:
        """What some groups of the state of a step hold.

        Args:
          step: one that newest_step has named.
          groups: fields of TrainState.

        Returns:
          {group: tree of shapes with types}, for restore_part.

        Raises:
          UserError: where the checkpoint is damaged.
        """
        metadata = self._manager.item_metadata(step)
        if metadata is None:
            raise UserError(f"{self._folder / str(step)} is damaged: remove it, or restore it")
        return {
            group: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metadata[group])
            for group in groups
        }

    def close(self) -> None:
        """Waits for what is being saved; raises UserError where that fails."""
        with self._explained():
            self._manager.close()

    def _check_shapes(self, step: int, params: Any) -> None:
        """Raises UserError where a whole checkpoint is of another network, or other channels."""
        self._manager.wait_until_finished()
        metadata = self._manager.item_metadata(step)
        if metadata is None:  # damaged: restoring says how
            return
        branches = {branch: metadata["params"].get(branch, {}) for branch in params}
        there, here = _shapes(branches), _shapes(params)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise UserError(
                    f"{self._folder / str(step)} is of another network ({name} is "
                    f"{there.get(name)} there, {here.get(name)} here): give images with as many "
                    "channels as the run's, and its config"
                )

    def _check_room(self, num_bytes: int) -> None:
        """Raises UserError where a save is bound to fail: said here, it is said in one line."""
        if not self._folder.is_dir():
            raise UserError(
                f"{self._folder} has vanished while the run went on: begin again, and leave the "
                "--workdir in its place"
            )
        free = shutil.disk_usage(self._folder).free
        needed = num_bytes + _MARGIN
        if free < needed:
            raise UserError(
                f"a checkpoint takes {decimal(needed)}, {self._folder} has {decimal(free)} free: "
                "make room, and the same command goes on from the newest one"
            )

    @contextlib.contextmanager
    def _read_explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            raise UserError(
                f"{self._folder / str(step)} cannot be read ({_reason(error)}): remove it to go on "
                "from the checkpoint before it, or give another --workdir"
            ) from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            raise UserError(
                f"a checkpoint cannot be saved in {self._folder} ({_reason(error)}): mend that, "
                "and the same command goes on from the newest one"
            ) from error


def read_variables(workdir: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """Reads the weights and statistics of a run's newest checkpoint, of both branches.

    Args:
      workdir: DIR.

    Returns:
      (step, {params, batch_stats, target_params, target_batch_stats}), host arrays.

    Raises:
      UserError: where there is no checkpoint, or it is damaged.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.newest_step()
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet: let the run reach its first")
    groups = ("params", "batch_stats", "target_params", "target_batch_stats")
    variables = checkpoints.restore_part(step, checkpoints.shapes(step, groups))
    checkpoints.close()
    return step, jax.tree.map(np.asarray, variables)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


def _score(metrics: dict[str, float]) -> float:
    return metrics["knn_top1"]


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom of an error of Orbax, in a few words."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for link in chain:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        if code := re.search(r"os_error_code='(\d+)'", str(link)):  # TensorStore's way
            return os.strerror(int(code[1]))
    return textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")


def state_digest(state: Any) -> str:
    """The SHA-256 over names, types, shapes and bytes of all arrays of a tree, as hex digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(_whole(leaf))
        header = [jax.tree_util.keystr(path), array.dtype.name, array.shape]
        digest.update(json.dumps(header).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _whole(leaf: Any) -> Any:
    """An array of which other hosts hold a part, gathered; any other as it is."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf
