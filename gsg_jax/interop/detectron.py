"""ResNets by detectron2's names."""

import pathlib
import pickle
import re
from collections.abc import Mapping

import numpy as np

from gsg_jax.interop.files import write_bytes
from gsg_jax.interop.layouts import COUNTER


def detectron_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames a backbone's tensors for detectron2.

    Args:
      tensors: of a ResNet, by torchvision's names.

    Returns:
      The same arrays without the classifier and BatchNorm's counters.
    """
    return {
        detectron_name(name): array
        for name, array in tensors.items()
        if not name.startswith("fc.") and not name.endswith(COUNTER)
    }


def write_detectron(tensors: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes a .pkl file for detectron2's checkpointer."""
    content = {"model": dict(tensors), "__author__": "gsg_jax", "matching_heuristics": True}
    write_bytes(pickle.dumps(content), path)


def detectron_name(name: str) -> str:
    """Renames one tensor: layer1 becomes res2, and a norm belongs to its convolution."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = name if name.startswith("res") else f"stem.{name}"
    name = re.sub(r"bn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
