"""One training image: read from its source, whole or as the crops of its step and place."""

import dataclasses

import numpy as np

from gsg_jax.console import UserError
from gsg_jax.data.crops import random_crops
from gsg_jax.data.source import Source

# The stream of a seed's randomness that crops are drawn from; the order's is another.
CROP_STREAM = 1


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads one image of a batch; what it returns is a function of its fields and arguments.

    Attributes:
      source: the images.
      seed: of the crops.
      num_views: V, crops an image; read where there is a crop_size.
      crop_size: S, side of a crop in pixels; None leaves images whole.
      crop_area: least and greatest share of an image's area that a crop covers.
      crop_aspect: least and greatest width / height of a crop.
      num_local: L, smaller crops an image besides.
      local_size: side of such a crop in pixels.
      local_area: least and greatest share of an image's area that it covers.
    """

    source: Source
    seed: int
    num_views: int | None
    crop_size: int | None
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    num_local: int
    local_size: int
    local_area: tuple[float, float]

    def __call__(self, step: int, place: int, i: int) -> dict[str, np.ndarray]:
        """Reads an image.

        Args:
          step: that it is read for.
          place: in that step's batch over all hosts.
          i: its position in the source.

        Returns:
          {"image": uint8 [H, W, C]}; with crops [V, S, S, C] and, where there are local ones,
          "local": the same of these.

        Raises:
          UserError: where it cannot be decoded, or is whole and not of the source's shape.
        """
        return self._whole(i) if self.crop_size is None else self._crops(step, place, i)

    def image_name(self, i: int) -> str:
        """What people call image i: its file, or its number where it has none of its own."""
        paths = getattr(self.source, "paths", ())
        return str(paths[i]) if paths else f"image {i} of {self.source.name!r}"

    def _whole(self, i: int) -> dict[str, np.ndarray]:
        pixels = self.source.image(i)
        if pixels.shape != self.source.image_shape:
            raise UserError(
                f"image {i} of {self.source.name!r} is {pixels.shape} where others are "
                f'{self.source.image_shape}: set data.crop="host"'
            )
        return {"image": pixels}

    def _crops(self, step: int, place: int, i: int) -> dict[str, np.ndarray]:
        seeds = np.random.SeedSequence(self.seed, spawn_key=(CROP_STREAM, step, place))
        rng = np.random.Generator(np.random.PCG64(seeds))
        pixels = self.source.image(i)
        kinds = {"image": (self.num_views, self.crop_size, self.crop_area)}
        if self.num_local:
            kinds["local"] = (self.num_local, self.local_size, self.local_area)
        return {
            name: random_crops(
                pixels, rng, num_views=count, size=size, area=area, aspect=self.crop_aspect
            )
            for name, (count, size, area) in kinds.items()
        }
