"""One tensor on both sides: its name and layout in PyTorch, its path and layout in Flax."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """Where a tensor is found on both sides.

    Attributes:
      name: in a PyTorch state dict.
      group: "params" or "batch_stats".
      path: of keys below the group.
      kind: one of KINDS.
    """

    name: str
    group: str
    path: tuple[str, ...]
    kind: str

    def below(self, name: str, *path: str) -> "Tensor":
        """The same tensor in a larger network: a prefix of its name, and keys above its path."""
        return self._replace(name=name + self.name, path=(*path, *self.path))


class Kind(NamedTuple):
    """Conversions between both sides' layouts of an array.

    Attributes:
      to_flax: from PyTorch's layout to ours.
      to_torch: from our layout to PyTorch's.
    """

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _patches_to_torch(kernel: np.ndarray, channels: int) -> np.ndarray:
    side = round((len(kernel) / channels) ** 0.5)
    return kernel.reshape(side, side, channels, -1).transpose(3, 2, 0, 1)


def _patches_to_flax(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


KINDS = {
    # [C], and other arrays with one layout on both sides
    "vector": Kind(lambda array: array, lambda array: array),
    # [out, in] there, [in, out] here
    "linear": Kind(lambda weight: weight.T, lambda kernel: kernel.T),
    "conv": Kind(  # [out, in, h, w] there, [h, w, in, out] here
        lambda weight: weight.transpose(2, 3, 1, 0), lambda kernel: kernel.transpose(3, 2, 0, 1)
    ),
    # [D, C, P, P] there, [P P C, D] here; patches of colour, or of grey
    "patches": Kind(_patches_to_flax, lambda kernel: _patches_to_torch(kernel, 3)),
    "grey patches": Kind(_patches_to_flax, lambda kernel: _patches_to_torch(kernel, 1)),
}


def linear(name: str, *path: str, has_bias: bool = True) -> list[Tensor]:
    """The tensors of a linear layer."""
    bias = [Tensor(f"{name}.bias", "params", (*path, "bias"), "vector")] if has_bias else []
    return [Tensor(f"{name}.weight", "params", (*path, "kernel"), "linear"), *bias]


def norm(name: str, *path: str, is_affine: bool = True, has_statistics: bool = True) -> list:
    """The tensors of a normalisation layer."""
    affine = [("weight", "params", "scale"), ("bias", "params", "bias")]
    statistics = [("running_mean", "batch_stats", "mean"), ("running_var", "batch_stats", "var")]
    parts = affine * is_affine + statistics * has_statistics
    return [Tensor(f"{name}.{of}", group, (*path, key), "vector") for of, group, key in parts]
