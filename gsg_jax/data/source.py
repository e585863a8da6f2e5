"""The interface of every source of images, a source held in memory, and a subset of a source."""

import dataclasses
import os
from pathlib import Path
from typing import Protocol

import numpy as np


class Source(Protocol):
    """Images that can be read in any order, from several threads at once.

    Attributes:
      name: of the data set, for people.
      labels: int32 [N] in [0, len(class_names)), -1 if unknown; None if the set has none. Reading
        it may cost a pass over the records; class_names is free.
      class_names: one per label; empty if there are no labels.
      image_shape: (H, W, C) of every image; None if they differ or it is not known.
      paths: the images' files; empty if images are not files of their own.
    """

    name: str
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    paths: tuple[Path, ...]

    def __len__(self) -> int: ...

    def image(self, i: int) -> np.ndarray:
        """Returns image i, uint8 [H, W, C] in [0, 255]."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images of one shape, decoded and in memory.

    Attributes:
      name: of the data set.
      images: uint8 [N, H, W, C].
      labels: int32 [N], or None.
      class_names: one per label, or empty.
      paths: the images' files, or empty.
      notes: what was understood and what was left out, for people.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        """Returns image i, uint8 [H, W, C]."""
        return self.images[i]


def num_decode_threads() -> int:
    """Returns how many threads decode when a source is opened: one per core, at most 32."""
    return min(32, os.cpu_count() or 1)


def fits(num_images: int, shape: tuple[int, int, int], memory_limit_mb: float) -> bool:
    """Returns whether images of one shape (H, W, C) take no more than the limit, in 2**20 bytes."""
    return num_images * int(np.prod(shape)) <= memory_limit_mb * 2**20


class Subset:
    """Some images of a source, by index; satisfies Source."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices
        self.name, self.class_names = source.name, source.class_names
        self.image_shape = source.image_shape

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of the chosen images, or None."""
        labels = self.source.labels
        return None if labels is None else labels[self.indices]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files of the chosen images, or none."""
        return tuple(self.source.paths[i] for i in self.indices) if self.source.paths else ()

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:
        """Returns image number `index` of the subset."""
        return self.source.image(int(self.indices[index]))
