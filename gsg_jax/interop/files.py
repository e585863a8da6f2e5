"""Checkpoint files of PyTorch and safetensors; nothing but tensors is ever loaded from them."""

import dataclasses
import functools
import io
import pathlib
import pickle
import re
import types
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from gsg_jax.console import UserError, say
from gsg_jax.run.files import replacing

PICKLES = (".pth", ".tar", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "teacher", "model")  # keys under which a checkpoint holds its state dict
PARALLEL = "module."  # prefix of every name under PyTorch's data parallelism
WRAPPED = r"(?<![^.])(?:module|_orig_mod)\."  # what wrapping and compiling put into names, anywhere
TEACHER = "teacher."
# All that a pickle of tensors needs; whatever else it names becomes an Inert.
NEEDED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}


@dataclasses.dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint file.

    Attributes:
      tensors: float32 or integer arrays by name, without what WRAPPED matches.
      wrapper: the key of the state dict, or "" if it is the whole file.
      is_parallel: whether every name in the file begins with PARALLEL.
      names: {name: name in the file} of those that differ.
    """

    tensors: dict[str, np.ndarray]
    wrapper: str
    is_parallel: bool
    names: dict[str, str]

    def renamed(self, names: Mapping[str, str]) -> "CheckpointFile":
        """The tensors in {name here: new name}, by their new names."""
        before = {new: self.names.get(old, old) for old, new in names.items()}
        return dataclasses.replace(
            self,
            tensors={new: self.tensors[old] for old, new in names.items()},
            names={new: old for new, old in before.items() if new != old},
        )


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
    plain = {name: re.sub(WRAPPED, "", name) for name in tensors}
    if any(name.startswith(TEACHER) for name in plain.values()):  # the student is left out
        named = [(old, new) for old, new in plain.items() if new.startswith(TEACHER)]
        plain = {old: new.removeprefix(TEACHER) for old, new in named}
    if len(set(plain.values())) < len(plain):
        plain = {name: name for name in tensors}  # a wrapped network beside another
    return CheckpointFile(tensors, wrapper, is_parallel, {}).renamed(plain)


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
        content = _loaded(torch, path)
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


def _loaded(torch, path: pathlib.Path) -> Any:
    """The content of a pickle; hyper-parameters and whatever else is no tensor become Inert."""
    load = functools.partial(torch.load, path, map_location="cpu")
    try:
        return load(weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise
    TensorUnpickler.skipped.clear()
    try:
        content = load(weights_only=False, pickle_module=TENSORS_ALONE)
    except (TypeError, AttributeError) as error:  # an Inert where a tensor needs something else
        raise pickle.UnpicklingError(f"not by weights_only: {error}") from error
    names = sorted(TensorUnpickler.skipped)
    more = f" and {len(names) - 3} more" if names[3:] else ""
    say(f"{path} holds more than tensors; not looked at: {', '.join(names[:3])}{more}")
    return content


class Inert:
    """Stands for an object of a pickle that is no tensor: whatever is done to it has no effect."""

    def __new__(cls, *_, **__):
        """Returns an empty one."""
        return super().__new__(cls)

    def __init__(self, *_, **__):
        """Takes what the object's class would have taken."""

    def __call__(self, *_, **__):
        """Returns another."""
        return Inert()

    __setstate__ = __setitem__ = append = extend = add = __init__


class TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors; looks up nothing but NEEDED, so nothing from the file can run.

    torch.load derives a class from it that makes the storages.
    """

    skipped: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a pickle names if it is needed, and the class Inert otherwise."""
        if (module, name) not in NEEDED:
            self.skipped.add(f"{module}.{name}")
            return Inert
        found = super().find_class(module, name)
        return found if isinstance(found, type) else lambda *args: found(*args)


TENSORS_ALONE = types.SimpleNamespace(Unpickler=TensorUnpickler, __name__="pickle")


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make room, or give another name"
        ) from error
