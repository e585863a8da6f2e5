"""Checkpoints, saved in the background by Orbax and checked on opening: the newest and the best."""

import contextlib
import hashlib
import json
import operator
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN
from rich.filesize import decimal

from gsg_jax.console import UserError
from gsg_jax.devices.hosts import are_several, is_writer
from gsg_jax.run import integrity

MARGIN = 2_000_000  # bytes of a checkpoint besides its arrays, and of the logs
_TRIES = 50  # to read from a run that saves faster than it is read
_score = operator.itemgetter("knn_top1")


class Checkpoints:
    """The checkpoints of one workdir; a context manager that waits for the save under way.

    A save is committed in the background by one rename, so a process that is killed at any moment
    leaves the previous checkpoint whole. Opening the folder finds the newest checkpoint that is
    whole by the digests of its files; damaged ones are reported and moved to DIR/damaged. A state
    is any pytree of arrays with a field `step`; its `params`, if any, are compared with the
    checkpoint's before they are restored.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int = 2,
        keep_every: int = 0,
        *,
        last_step: int = integrity.MAX_STEP,
        read_only: bool = False,
    ):
        """Opens DIR/checkpoints.

        Args:
          workdir: DIR.
          keep: how many of the newest to keep; the best by knn_top1 is kept too.
          keep_every: also keep those at multiples of this many steps; 0 keeps no others.
          last_step: of the run; a later checkpoint is another run's.
          read_only: True neither makes nor changes the folder.

        Raises:
          UserError: if there are checkpoints and none is whole, the newest is of another run, or
            they cannot be read.
        """
        integrity.check_name(workdir)
        self._workdir, self._folder = workdir, workdir / "checkpoints"
        self._newest = self._agree_on_newest(read_only)
        if (self._newest or 0) > last_step:
            raise UserError(
                f"{self._folder / str(self._newest)} is of another run: this one has {last_step} "
                "steps; move it away, or give another --workdir"
            )
        self._manager = None if read_only else self._open(keep, keep_every)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type, *_) -> None:
        if error_type is None:
            self.close()
            return
        with contextlib.suppress(UserError):  # the first error is the one to report
            self.close()

    def newest_step(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step() if self._manager else self._newest

    def required_step(self) -> int:
        """Step of the newest whole checkpoint; raises UserError if there is none."""
        newest = self.newest_step()
        if newest is None:
            raise UserError(f"{self._workdir} holds no checkpoint yet: let the run reach its first")
        return newest

    def save(
        self,
        state: Any,
        knn_top1: float | None,
        *,
        wait: bool = False,
        record: Callable[[], None] = lambda: None,
    ) -> None:
        """Waits for the save before this one, then starts saving the state of its step.

        Args:
          state: on the devices; copied before this returns, so that it may be donated.
          knn_top1: its score, if there is one.
          wait: whether to wait until it is saved.
          record: called once there is room for this save.

        Raises:
          UserError: if this save, or the one before it, fails; on a full disk, for example.
        """
        with self._saving():
            self._manager.wait_until_finished()
            self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            record()
            self._manager.save(
                int(state.step),
                args=ocp.args.StandardSave(state),
                metrics=None if knn_top1 is None else {"knn_top1": knn_top1},
            )
            if wait:
                self._manager.wait_until_finished()

    def restore(self, step: int, like: Any) -> Any:
        """Restores the state of a step, or some fields of it.

        Args:
          step: of a checkpoint.
          like: a state, or {field: tree} of some fields, of which some branches of "params" and
            "batch_stats" may be left out: arrays, or shapes with types and shardings.

        Returns:
          The same tree with the arrays of the checkpoint.

        Raises:
          UserError: if the checkpoint is damaged, or of other shapes.
        """
        is_part = isinstance(like, dict)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=is_part,
        )
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        with self._reading(step), contextlib.closing(reader):
            self._check_shapes(step, like)
            return reader.restore(self._arrays(step), args=arguments)

    def shapes(self, step: int, fields: Sequence[str]) -> dict[str, Any]:
        """What some fields of the state of a step hold, {field: tree of shapes with types}.

        Raises:
          UserError: if the checkpoint is damaged.
        """
        with self._reading(step):
            metadata = integrity.metadata(self._arrays(step))
        return {
            field: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metadata[field])
            for field in fields
        }

    def close(self) -> None:
        """Waits for the save under way; raises UserError if it fails."""
        if self._manager:
            with self._saving():
                self._manager.close()

    def _agree_on_newest(self, read_only: bool) -> int | None:
        """The newest whole step: the writer finds it and tells the other hosts."""
        step, error = -1, UserError(f"{self._folder} cannot be opened: host 0 says why")
        if is_writer():
            try:
                with self._opening():
                    newest = integrity.newest_whole(self._workdir, read_only)
                step = -1 if newest is None else newest
            except UserError as caught:
                step, error = -2, caught
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == -2:  # all hosts raise
            raise error
        return None if step == -1 else step

    def _open(self, keep: int, keep_every: int) -> ocp.CheckpointManager:
        handler = ocp.StandardCheckpointHandler()
        finish = handler.finalize

        def finalize(directory: Any) -> None:
            """Adds the digests. Orbax calls this in its thread before it renames the folder."""
            finish(directory)
            integrity.write_digests(pathlib.Path(directory))

        handler.finalize = finalize
        policies = [
            LatestN(keep),
            BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            *([EveryNSteps(keep_every)] if keep_every else []),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=_score,  # without it no score is written, and a resumed run forgets the best
        )
        with self._opening():
            return ocp.CheckpointManager(
                self._folder.resolve(), options=options, item_handlers=handler
            )

    def _arrays(self, step: int) -> pathlib.Path:
        return self._folder.resolve() / str(step) / integrity.ARRAYS

    def _check_shapes(self, step: int, like: Any) -> None:
        """Raises UserError if a whole checkpoint is of another network, or other channels."""
        if self._manager:
            self._manager.wait_until_finished()
        tree = integrity.metadata(self._arrays(step))
        if isinstance(like, dict):  # some fields, of which some branches may be left out
            tree = {
                field: {branch: tree[field].get(branch, {}) for branch in branches}
                for field, branches in like.items()
            }
        there, here = named_shapes(tree), named_shapes(like)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise UserError(
                    f"{self._folder / str(step)} is of another network ({name} is "
                    f"{there.get(name)} there, {here.get(name)} here): give images with as many "
                    "channels as the run's, and its config"
                )

    def _check_room(self, num_bytes: int) -> None:
        """Raises UserError, in one line, if a save is bound to fail."""
        free, needed = shutil.disk_usage(self._folder).free, num_bytes + MARGIN
        if free < needed:
            raise UserError(
                f"a checkpoint takes {decimal(needed)}, {self._folder} has {decimal(free)} free: "
                "make room, and the same command resumes from the newest one"
            )

    def _saving(self) -> contextlib.AbstractContextManager[None]:
        fix = "fix that, and the same command resumes from the newest one"
        return _one_line(f"a checkpoint cannot be saved in {self._folder}", fix)

    def _reading(self, step: int) -> contextlib.AbstractContextManager[None]:
        return _one_line(f"{self._folder / str(step)} cannot be read")

    def _opening(self) -> contextlib.AbstractContextManager[None]:
        return _one_line(f"{self._folder} cannot be opened")


@contextlib.contextmanager
def _one_line(what: str, fix: str = "fix that, or give another --workdir") -> Iterator[None]:
    """Turns what Orbax raises into a UserError with its reason."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # files that are damaged or gone make Orbax raise anything
        raise UserError(f"{what} ({integrity.reason(error)}): {fix}") from error


def read_newest(workdir: pathlib.Path, read: Callable[[Checkpoints, int], Any]) -> tuple[int, Any]:
    """Reads from a run's newest checkpoint, while the run may continue.

    A run that saves removes older checkpoints. If that happens during the reading, on one host, the
    reading begins again with the checkpoint that is then newest.

    Args:
      workdir: DIR.
      read: takes the open checkpoints and the step.

    Returns:
      The step, and what `read` returns.

    Raises:
      UserError: if there is no checkpoint, or it is damaged.
    """
    for is_last_try in (*[False] * _TRIES, True):
        there = integrity.saved_steps(workdir)
        try:
            with Checkpoints(workdir, read_only=True) as checkpoints:
                step = checkpoints.required_step()
                return step, read(checkpoints, step)
        except UserError:
            if is_last_try or are_several() or integrity.saved_steps(workdir) == there:
                raise


def read_variables(workdir: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """Reads the weights and statistics of a run's newest checkpoint, of both branches.

    Returns:
      (step, {params, batch_stats, target_params, target_batch_stats}), host arrays.

    Raises:
      UserError: if there is no checkpoint, or it is damaged.
    """
    groups = ("params", "batch_stats", "target_params", "target_batch_stats")
    step, variables = read_newest(workdir, lambda x, step: x.restore(step, x.shapes(step, groups)))
    return step, jax.tree.map(np.asarray, variables)


def named_shapes(tree: Any) -> dict[str, str]:
    """Type and shape of each array of a tree, or of a checkpoint's metadata, by its name."""
    leaves = ocp.tree.to_flat_dict(tree, sep="/")
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def state_digest(state: Any) -> str:
    """The SHA-256 over names, types, shapes and bytes of all arrays of a tree, as hex digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):  # other hosts hold a part of it
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        header = [jax.tree_util.keystr(path), array.dtype.name, array.shape]
        digest.update(json.dumps(header).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
