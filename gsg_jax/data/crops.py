"""Crops on the host: RandomResizedCrop for training, resize and centre cut for evaluation."""

import dataclasses
import math

import numpy as np
from PIL import Image

ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10  # to draw a box that fits
EVAL_RESIZE = 256 / 224
# The centre cut resizes no more of the long side than this times the short one.
_MAX_ASPECT = 64

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class CropRecipe:
    """The random crops that the host cuts out of each training image.

    Attributes:
      num_views: V, crops per image.
      size: S, side of a crop in pixels.
      area: least and greatest share of the image's area that a crop covers, in (0, 1].
      aspect: least and greatest width / height of a crop, local crops included.
      num_local: L, smaller crops per image in addition (multi-crop); 0 for none.
      local_size: side of a local crop in pixels.
      local_area: as `area`, for local crops.
    """

    num_views: int
    size: int
    area: tuple[float, float] = (0.2, 1.0)
    aspect: tuple[float, float] = ASPECT
    num_local: int = 0
    local_size: int = 96
    local_area: tuple[float, float] = (0.05, 0.2)

    def cut(self, pixels: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns the crops of one decoded image.

        Args:
          pixels: uint8 [H, W, C], C 1 or 3.
          rng: source of randomness.

        Returns:
          {"image": uint8 [V, S, S, C]} and, if there are local crops, "local": uint8
          [L, local_size, local_size, C].
        """
        kinds = {"image": (self.num_views, self.size, self.area)}
        if self.num_local:
            kinds["local"] = (self.num_local, self.local_size, self.local_area)
        return {
            name: random_crops(
                pixels, rng, num_views=count, size=size, area=area, aspect=self.aspect
            )
            for name, (count, size, area) in kinds.items()
        }


def draw_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float] = ASPECT,
) -> Box:
    """Draws the box of a RandomResizedCrop.

    Args:
      rng: source of randomness.
      height: of the image, in pixels.
      width: of the image, in pixels.
      area: least and greatest share of the image's area, in (0, 1].
      aspect: least and greatest width / height.

    Returns:
      (left, top, right, bottom) in pixels, inside the image. The aspect is drawn log-uniformly, up
      to rounding; if ten draws do not fit, the box is the greatest centred one of allowed aspect.

    Source: torchvision.transforms.RandomResizedCrop.
    """
    for _ in range(CROP_ATTEMPTS):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w = round(math.sqrt(target * ratio))
        h = round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    h, w = largest_box(height, width, aspect)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def largest_box(height: int, width: int, aspect: tuple[float, float]) -> tuple[int, int]:
    """Returns (h, w) of the largest box in an image whose width / height is within the limits."""
    w = min(width, max(1, round(height * aspect[1])))
    return min(height, max(1, round(width / aspect[0]))), w


def random_crops(
    pixels: np.ndarray,
    rng: np.random.Generator,
    *,
    num_views: int,
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float] = ASPECT,
) -> np.ndarray:
    """Cuts independent RandomResizedCrops out of one decoded image.

    Args:
      pixels: uint8 [H, W, C], C 1 or 3.
      rng: source of randomness.
      num_views: V, how many crops.
      size: S, their side in pixels.
      area: least and greatest share of the image's area.
      aspect: least and greatest width / height.

    Returns:
      uint8 [V, S, S, C], resized bilinearly with antialiasing.
    """
    crops = []
    for _ in range(num_views):
        left, top, right, bottom = draw_box(rng, *pixels.shape[:2], area, aspect)
        # The cut comes before the resizing, as in torchvision: Pillow's own resize(box=...) would
        # let the filter see pixels outside the box.
        crops.append(_resize(pixels[top:bottom, left:right], size, size))
    return np.stack(crops)


def centre_cut(pixels: np.ndarray, size: int, resize: float = EVAL_RESIZE) -> np.ndarray:
    """Resizes the short side and cuts the centre, as ImageNet is evaluated.

    Args:
      pixels: uint8 [H, W, C], C 1 or 3.
      size: S, side of the result in pixels.
      resize: length of the resized short side in units of S, at least 1. ImageNet's is 256/224;
        with 1 an image of S x S pixels stays as it is.

    Returns:
      uint8 [S, S, C].

    Source: torchvision.transforms.Resize (the long side is rounded down) and CenterCrop.
    """
    # Cut first: a strip of one pixel would be resized to `short` times its length.
    longest = _MAX_ASPECT * min(pixels.shape[:2])
    top, left = (max(0, length - longest) // 2 for length in pixels.shape[:2])
    pixels = pixels[top : top + longest, left : left + longest]
    height, width = pixels.shape[:2]
    short = round(size * resize)
    scaled_height = max(short, int(short * height / width))
    scaled_width = max(short, int(short * width / height))
    scaled = _resize(pixels, scaled_height, scaled_width)
    top, left = round((scaled_height - size) / 2), round((scaled_width - size) / 2)
    return scaled[top : top + size, left : left + size]


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    channels = pixels.shape[-1]
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, channels)
