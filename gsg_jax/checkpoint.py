"""Checkpoints: the newest few and the best, saved beside the step, by Orbax."""

import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from gsg_jax.train_step import TrainState


class Checkpoints:
    """The checkpoints of one workdir.

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
                    get_metric_fn=lambda metrics: metrics["knn_top1"],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, create=not read_only, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(workdir.resolve() / "checkpoints", options=options)

    def newest_step(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, knn_top1: float | None) -> None:
        """Starts saving the state of its step.

        Args:
          state: on the devices; copied before this returns, so that it may be donated.
          knn_top1: its figure of the k-NN monitor, where there is one.
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.StandardSave(state),
            metrics=None if knn_top1 is None else {"knn_top1": knn_top1},
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Restores the state of a step, in the shapes, types and shardings of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def state_digest(state: Any) -> str:
    """The SHA-256 over names, types, shapes and bytes of all arrays of a tree, as hex digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        header = [jax.tree_util.keystr(path), array.dtype.name, array.shape]
        digest.update(json.dumps(header).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
