"""Checkpoint files of PyTorch and safetensors; nothing but tensors is ever loaded from them."""

import contextlib
import dataclasses
import io
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from gsg_jax.console import UserError

PICKLES = (".pth", ".tar", ".pt", ".bin")
WRAPPERS = ("state_dict", "model")  # keys under which a checkpoint holds its state dict
PARALLEL = "module."  # prefix of every name under PyTorch's data parallelism


@dataclasses.dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint file.

    Attributes:
      tensors: float32 or integer arrays by name, without PARALLEL.
      wrapper: the key of the state dict, or "" if it is the whole file.
      is_parallel: whether every name in the file begins with PARALLEL.
    """

    tensors: dict[str, np.ndarray]
    wrapper: str
    is_parallel: bool


def read_checkpoint(path: pathlib.Path) -> CheckpointFile:
    """Reads the tensors of a checkpoint.

    Args:
      path: a .safetensors file, or one that torch.save wrote.

    Returns:
      The tensors, and how they are stored in the file.

    Raises:
      UserError: if the file is missing, cut short, or holds anything but tensors.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"{path}: {what}; give a checkpoint's path")
    if path.suffix == ".safetensors":
        tensors, wrapper = _read_safetensors(path), ""
    elif path.suffix in PICKLES:
        tensors, wrapper = _read_pickle(path)
    else:
        known = ", ".join((".safetensors", *PICKLES))
        raise UserError(f"{path}: the name ends in {path.suffix!r}; known are {known}")
    is_parallel = bool(tensors) and all(name.startswith(PARALLEL) for name in tensors)
    if is_parallel:
        tensors = {name.removeprefix(PARALLEL): array for name, array in tensors.items()}
    return CheckpointFile(tensors, wrapper, is_parallel)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from error
    return {
        name: array if array.dtype.kind in "iubc" else array.astype(np.float32)
        for name, array in tensors.items()
    }


def _read_pickle(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    torch = import_torch(f"{path} is a pickle of PyTorch")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Unsupported" not in str(error):
            raise _cut_short(path, error) from error
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} holds more than tensors, which could run as code, and was not loaded "
            f"({found[1] if found else 'a Python type'}): save its state_dict alone, or as "
            ".safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _cut_short(path, error) from error
    wrapper = next((key for key in WRAPPERS if _is_mapping_in(content, key)), "")
    state_dict = content[wrapper] if wrapper else content
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise UserError(f"{path} holds no state dict: give a file that torch.save made of one")
    others = [
        name
        for name, value in state_dict.items()
        if not isinstance(name, str) or not isinstance(value, torch.Tensor)
    ]
    if others:
        raise UserError(
            f"{path}: {others[0]!r} is not a tensor with a name; the state dict must be the whole "
            f"file, or lie under {' or '.join(WRAPPERS)}"
        )
    try:
        return {name: _from_torch(value) for name, value in state_dict.items()}, wrapper
    except (TypeError, RuntimeError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path} holds tensors that are not dense ({first}): save dense ones"
        ) from error


def _is_mapping_in(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _from_torch(tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()


def _cut_short(path: pathlib.Path, error: Exception) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"{path} is damaged or cut short ({lines[0]}): fetch it again")


def import_torch(why: str):
    """Returns the torch module; raises UserError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{why}, which needs PyTorch: pip install 'gsg_jax[torch]', or take .safetensors"
        ) from error
    return torch


def write_checkpoint(
    tensors: Mapping[str, np.ndarray], path: pathlib.Path, wrapper: str = ""
) -> None:
    """Writes a state dict atomically, by one rename.

    Args:
      tensors: by name.
      path: a .safetensors file, or a .pth of torch.save.
      wrapper: key of the state dict in a .pth; "" if it is the whole file.

    Raises:
      UserError: if PyTorch is needed and not installed, or the file cannot be written.
    """
    if path.suffix == ".safetensors":
        # timm and Hugging Face look for this line.
        content = safetensors.numpy.save(dict(tensors), metadata={"format": "pt"})
    else:
        torch = import_torch(f"{path} is a pickle of PyTorch")
        state_dict = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
        buffer = io.BytesIO()
        torch.save({wrapper: state_dict} if wrapper else state_dict, buffer)
        content = buffer.getvalue()
    write_bytes(content, path)


def write_bytes(content: bytes, path: pathlib.Path) -> None:
    """Writes a file by one rename; raises UserError and leaves nothing if that fails."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make room, or give another name"
        ) from error
