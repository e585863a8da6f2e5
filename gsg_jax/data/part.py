"""A part of a source of images."""

import dataclasses
from pathlib import Path

import numpy as np

from gsg_jax.data.base import Source


@dataclasses.dataclass(frozen=True)
class Part:
    """Some images of a source, by index; satisfies Source."""

    source: Source
    indices: np.ndarray

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of the chosen images, or None."""
        labels = self.source.labels
        return None if labels is None else labels[self.indices]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the source."""
        return self.source.class_names

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape of every image of the source, or None."""
        return self.source.image_shape

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files of the chosen images, or nothing."""
        return tuple(self.source.paths[i] for i in self.indices) if self.source.paths else ()

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:
        """Image number `index` of the part."""
        return self.source.image(int(self.indices[index]))
