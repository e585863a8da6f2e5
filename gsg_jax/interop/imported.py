"""Tensors of an imported checkpoint that have no place in a run, kept for a later export."""

import json
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from gsg_jax.console import UserError
from gsg_jax.interop.files import CheckpointFile
from gsg_jax.interop.known import LAYOUTS
from gsg_jax.interop.layouts import Found
from gsg_jax.interop.tensors import Tensor
from gsg_jax.run.files import read_object, write_atomically
from gsg_jax.run.workdir import IMPORTED

KEYS = ("layout", "wrapper", "is_parallel", "params", "target_params")


def write_imported(
    workdir: pathlib.Path, file: CheckpointFile, found: Found, placed: Collection[str]
) -> None:
    """Writes DIR/imported/: the layout, and the tensors that have no place in the run.

    A running mean from which a bias was subtracted is also kept: adding the bias again may differ
    by rounding.

    Args:
      workdir: DIR.
      file: the checkpoint.
      found: its layout.
      placed: names of the tensors that have a place.
    """
    folder = workdir / IMPORTED
    folder.mkdir(parents=True, exist_ok=True)
    means = set(found.last_biases.values())
    rest = {name: a for name, a in file.tensors.items() if name not in placed or name in means}
    safetensors.numpy.save_file(rest, folder / "rest.safetensors")
    about = {
        "layout": found.layout,
        "wrapper": file.wrapper,
        "is_parallel": file.is_parallel,
        "names": file.names,
        "params": _branches(found.tensors, placed),
        "target_params": _branches(found.target_tensors, placed),
    }
    write_atomically(folder / "layout.json", json.dumps(about, indent=2) + "\n")


def _branches(tensors: list[Tensor], placed: Collection[str]) -> list[str]:
    return sorted({tensor.path[0] for tensor in tensors if tensor.name in placed})


def read_imported(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads the layout that write_imported wrote; None for a run that was not imported."""
    folder = workdir / IMPORTED
    if not folder.is_dir():
        return None
    about = read_object(folder / "layout.json")
    if missing := [key for key in KEYS if key not in about]:
        raise _damaged(folder, f"layout.json has no {missing[0]}")
    if about["layout"] not in LAYOUTS:
        raise _damaged(folder, f"layout.json names a layout {about['layout']!r}")
    return about


def _damaged(folder: pathlib.Path, why: str) -> UserError:
    return UserError(f"{folder} is damaged ({why}): import the checkpoint again, or restore it")


def as_imported(variables: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Selects the branches of a TrainState's variables that were imported."""
    named = {"params": about["params"], "target_params": about["target_params"]}
    named |= {"batch_stats": about["params"], "target_batch_stats": about["target_params"]}
    return {
        group: {branch: of for branch, of in variables[group].items() if branch in branches}
        for group, branches in named.items()
    }


def with_rest(tensors: dict[str, np.ndarray], workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Completes a state dict with the tensors kept from the imported one.

    Args:
      tensors: of the imported branches, not yet trained, in the layout they came in.
      workdir: DIR.

    Returns:
      The whole imported state dict: BatchNorm's counters and running means as they were, and the
      tensors that have no place in the run.
    """
    folder = workdir / IMPORTED
    try:
        return tensors | safetensors.numpy.load_file(folder / "rest.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(folder, f"rest.safetensors: {error}") from error
