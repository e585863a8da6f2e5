"""Checkpoints: the newest few and the best, saved beside the step by Orbax, checked when opened."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN
from rich.filesize import decimal

from gsg_jax.console import UserError, say
from gsg_jax.devices import hosts
from gsg_jax.run import integrity
from gsg_jax.train.state import TrainState

# What Orbax raises where a file cannot be written or read.
_FAILURES = (OSError, ValueError, RuntimeError, KeyError)
# What does not pass by itself: a full disk, a folder that may not be written to.
_LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}
# How a store fails that is not there for a while: unmounted, renamed, or out of reach.
_AWAY = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO),
    *(errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}

_MEND = ": mend that, and the same command goes on from the newest one"

# Bytes of a checkpoint besides the arrays, and of the logs.
_MARGIN = 2_000_000

# Where damaged checkpoints are kept.
DAMAGED = "damaged"


class _SaveFailed(UserError):
    """A checkpoint was not saved, but another may be; `is_away` where its folder is not there."""

    def __init__(self, what: str, is_away: bool):
        super().__init__(what + _MEND)
        self.what, self.is_away = what, is_away


class Checkpoints:
    """The checkpoints of one workdir; a context manager that waits for what is being saved.

    A save returns at once and is committed in the background by one rename, so that a process
    killed at any moment leaves the checkpoint before it whole. Opening finds the newest that is
    whole by the digests of its files. Damaged ones are told of, and moved to DIR/damaged.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int = 2,
        keep_every: int = 0,
        *,
        patience: float = 0.0,
        read_only: bool = False,
    ):
        """Opens DIR/checkpoints.

        Args:
          workdir: DIR.
          keep: how many of the newest to keep; the best by knn_top1 is kept besides.
          keep_every: those whose step is a multiple of it are kept too; 0 keeps no others.
          patience: how long a save waits for a folder that has vanished, seconds.
          read_only: True neither makes nor changes the folder.

        Raises:
          UserError: where there are checkpoints and none is whole, or they cannot be read.
        """
        self._workdir, self._folder = workdir, workdir / "checkpoints"
        self._patience = patience
        record = workdir / "config.json"
        # A save that was under way when the folder vanished makes another in its place.
        self._sign = record if record.exists() else self._folder
        policies = [
            LatestN(keep),
            BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            *([EveryNSteps(keep_every)] if keep_every else []),
        ]
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=_score,  # without it no score is written, and a resumed run forgets the best
        )
        self._newest = self._agree_on_newest(read_only)
        self._manager = None if read_only else self._open()
        self._is_stale = False  # True: a save has failed, and Orbax believes in it

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
        return self._manager.latest_step() if self._manager else self._newest

    def required_step(self) -> int:
        """Step of the newest whole checkpoint; raises UserError where there is none."""
        newest = self.newest_step()
        if newest is None:
            raise UserError(f"{self._workdir} holds no checkpoint yet: let the run reach its first")
        return newest

    def save(self, state: TrainState, knn_top1: float | None, *, wait: bool = False) -> None:
        """Starts saving the state of its step.

        Where the folder is not there, waits for it. Where the save before this one has failed
        since it was not, says so: this one takes its place.

        Args:
          state: on the devices; copied before this returns, so that it may be donated.
          knn_top1: its figure of the k-NN monitor, where there is one.
          wait: until it is saved.

        Raises:
          UserError: where this save, or the one before it, fails; a full disk, say.
        """
        deadline = time.monotonic() + self._patience
        try:
            with self._explained():
                self._manager.wait_until_finished()
        except _SaveFailed as error:
            self._is_stale = True
            say(f"warning: {error.what}: this run goes on, and saves its next one")
        for attempt in itertools.count():
            self.wait_for_store(deadline)
            try:
                self._start(state, knn_top1)
                if wait:
                    with self._explained():
                        self._manager.wait_until_finished()
                return
            except _SaveFailed as error:
                self._is_stale = True
                if time.monotonic() >= deadline or (attempt and not error.is_away):
                    raise
                say(f"warning: {error.what}: this run tries again")
                time.sleep(1)

    def wait_for_store(self, deadline: float | None = None) -> None:
        """Waits until the folder is there, where it is not.

        Args:
          deadline: by time.monotonic(); None is as long from now as the run has patience.

        Raises:
          UserError: where it is not there at the deadline.
        """
        if self._is_there():
            return
        if deadline is None:
            deadline = time.monotonic() + self._patience
        seconds = max(0, deadline - time.monotonic())
        if seconds:
            say(
                f"warning: {self._folder} is not there: waiting for it, at most {seconds:.0f} s "
                "(--config.run.store_patience_seconds)"
            )
        while not self._is_there():
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{self._folder} has vanished while the run went on: bring it back, and the "
                    "same command goes on from the newest checkpoint"
                )
            self._remove_skeleton()
            time.sleep(0.2)
        say(f"{self._folder} is there again: going on")

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
        reader = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        with self._read_explained(step), contextlib.closing(reader):
            self._check_shapes(step, like.params)
            return reader.restore(self._arrays(step), args=ocp.args.StandardRestore(abstract))

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
            return reader.restore(self._arrays(step), args=arguments)

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
        with self._read_explained(step):
            metadata = integrity.metadata(self._arrays(step))
        return {
            group: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metadata[group])
            for group in groups
        }

    def close(self) -> None:
        """Waits for what is being saved; raises UserError where that fails."""
        if self._manager:
            with self._explained():
                self._manager.close()

    def _agree_on_newest(self, read_only: bool) -> int | None:
        """The newest whole step: the writer finds it, and the other hosts hear of it."""
        step, error = None, None
        if hosts.is_writer():
            try:
                step = self._choose_newest(read_only)
            except UserError as caught:  # raised once the other hosts know
                error = caught
        word = -2 if error else -1 if step is None else step
        word = int(multihost_utils.broadcast_one_to_all(np.int32(word)))
        if word == -2:
            raise error or UserError(f"{self._folder} cannot be opened: host 0 says why")
        return None if word == -1 else word

    def _choose_newest(self, read_only: bool) -> int | None:
        """The newest whole step; puts away what is damaged, unless read_only."""
        with self._opening_explained():
            steps, damaged, whole = saved_steps(self._workdir), {}, None
            while steps and whole is None:
                step = steps.pop()
                reason = integrity.damage(self._folder / str(step))
                if reason is None:
                    whole = step
                elif (self._folder / str(step)).exists():  # else a run has just removed it
                    damaged[step] = reason
            if whole is None and damaged:
                newest = max(damaged)
                raise UserError(
                    f"none of the {len(damaged)} checkpoints in {self._folder} is whole (of step "
                    f"{newest}, {damaged[newest]}): restore one, or begin in another --workdir"
                )
            if not read_only:
                for step in steps:  # Orbax reads the scores of all
                    if reason := integrity.score_damage(self._folder / str(step)):
                        damaged[step] = reason
                self._remove_unfinished(whole)
            for step, reason in damaged.items():
                told = f"warning: the checkpoint of step {step} is damaged ({reason})"
                if not read_only:
                    told += f" and is kept in {self._put_away(step)}"
                say(f"{told}: that of step {whole} is used")
        return whole

    def _put_away(self, step: int) -> pathlib.Path:
        """Moves a checkpoint out of Orbax's sight; says where to."""
        folder = self._workdir / DAMAGED
        folder.mkdir(exist_ok=True)
        place, count = folder / str(step), 1
        while place.exists():
            count += 1
            place = folder / f"{step}-{count}"
        (self._folder / str(step)).rename(place)
        return place

    def _remove_unfinished(self, newest: int | None) -> None:
        """Removes what a save has left that was cut off; tells of one that would be the newest."""
        for path in self._unfinished():
            step = path.name.partition(".")[0]
            if step.isdecimal() and int(step) > (newest or 0):
                used = (
                    "the run begins again" if newest is None else f"that of step {newest} is used"
                )
                say(f"warning: the checkpoint of step {step} is only half written: {used}")
            shutil.rmtree(path)

    def _open(self) -> ocp.CheckpointManager:
        with self._opening_explained():
            return ocp.CheckpointManager(
                self._folder.resolve(), options=self._options, item_handlers=self._handler()
            )

    def _handler(self) -> ocp.StandardCheckpointHandler:
        """Orbax's handler, which also writes the digests of a checkpoint's files into it.

        Orbax calls `finalize` in its thread, once every host has written; then it renames the
        whole.
        """
        handler = ocp.StandardCheckpointHandler()
        finish = handler.finalize

        def finalize(directory: Any) -> None:
            finish(directory)
            integrity.write_digests(pathlib.Path(directory))
            if not self._is_there():  # these are folders that TensorStore has made anew
                self._remove_skeleton()
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))

        handler.finalize = finalize
        return handler

    def _start(self, state: TrainState, knn_top1: float | None) -> None:
        """Starts one save; raises UserError where it fails at once."""
        with self._explained():
            if self._is_stale:
                with contextlib.suppress(*_FAILURES):  # told before
                    self._manager.close()
                for path in self._unfinished() if hosts.is_writer() else ():
                    shutil.rmtree(path)
                self._manager, self._is_stale = self._open(), False
            self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._manager.save(
                int(state.step),
                args=ocp.args.StandardSave(state),
                metrics=None if knn_top1 is None else {"knn_top1": knn_top1},
            )

    def _is_there(self) -> bool:
        # Of os.path, which take a store out of reach for one that is not there.
        return os.path.isdir(self._folder) and os.path.exists(self._sign)

    def _remove_skeleton(self) -> None:
        """Removes the folders that a save has made anew, which would bar the real one's way."""
        for path in self._unfinished():
            shutil.rmtree(path, ignore_errors=True)
        for folder in (self._folder, self._workdir):
            with contextlib.suppress(OSError):  # it holds something, or is not there
                folder.rmdir()

    def _unfinished(self) -> list[pathlib.Path]:
        """The folders of saves that were cut off, or are under way."""
        return list(self._folder.glob(f"*{integrity.UNFINISHED}*"))

    def _arrays(self, step: int) -> pathlib.Path:
        return self._folder.resolve() / str(step) / integrity.ARRAYS

    def _check_shapes(self, step: int, params: Any) -> None:
        """Raises UserError where a whole checkpoint is of another network, or other channels."""
        if self._manager:
            self._manager.wait_until_finished()
        metadata = integrity.metadata(self._arrays(step))
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
                f"{self._folder / str(step)} cannot be read ({integrity.reason(error)}): mend "
                "that, or give another --workdir"
            ) from error

    @contextlib.contextmanager
    def _opening_explained(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            raise UserError(
                f"{self._folder} cannot be opened ({integrity.reason(error)}): mend that, or give "
                "another --workdir"
            ) from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            number, is_there = integrity.error_number(error), self._is_there()
            what = f"a checkpoint cannot be saved in {self._folder} ({integrity.reason(error)})"
            if number in _LASTING and is_there:
                raise UserError(what + _MEND) from error
            raise _SaveFailed(what, number in _AWAY or not is_there) from error


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the checkpoints of a run, whole or damaged, the oldest first."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def read_variables(workdir: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """Reads the weights and statistics of a run's newest checkpoint, of both branches.

    Args:
      workdir: DIR.

    Returns:
      (step, {params, batch_stats, target_params, target_batch_stats}), host arrays.

    Raises:
      UserError: where there is no checkpoint, or it is damaged.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.required_step()
        groups = ("params", "batch_stats", "target_params", "target_batch_stats")
        variables = checkpoints.restore_part(step, checkpoints.shapes(step, groups))
    return step, jax.tree.map(np.asarray, variables)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


def _score(metrics: dict[str, float]) -> float:
    return metrics["knn_top1"]


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
