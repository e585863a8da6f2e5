"""One training image: read from its source, whole or as the crops of its step and place."""

import dataclasses

import numpy as np

from gsg_jax.console import UserError
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.source import BrokenImage, Source, naming_memory

# The stream of a seed's randomness that crops are drawn from; the order has another.
CROP_STREAM = 1


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads one image of a batch; the result depends on its fields and arguments alone.

    Attributes:
      source: the images.
      seed: of the crops.
      crops: which crops to cut; None leaves images whole.
    """

    source: Source
    seed: int
    crops: CropRecipe | None

    def __call__(self, step: int, place: int, i: int) -> dict[str, np.ndarray] | BrokenImage:
        """Reads an image.

        Args:
          step: the step that it is read for.
          place: its position in that step's batch over all hosts.
          i: its position in the source.

        Returns:
          {"image": uint8 [H, W, C]}, or what CropRecipe.cut returns; what is wrong, if the image
          is damaged.

        Raises:
          UserError: if it cannot be read, or is left whole and differs from the source's shape.
        """
        with naming_memory(self.source, i):
            try:
                pixels = self.source.image(i)
            except BrokenImage as broken:
                return broken
            if self.crops:
                seeds = np.random.SeedSequence(self.seed, spawn_key=(CROP_STREAM, step, place))
                return self.crops.cut(pixels, np.random.Generator(np.random.PCG64(seeds)))
        return {"image": check_shape(self.source, i, pixels)}


def check_shape(source: Source, i: int, pixels: np.ndarray) -> np.ndarray:
    """Returns an image that is left whole; UserError if its shape is not the source's."""
    if pixels.shape != source.image_shape:
        raise UserError(
            f"image {i} of {source.name!r} is {pixels.shape} but others are {source.image_shape}, "
            'or were when the set was opened: set data.crop="host", or restore the image'
        )
    return pixels
