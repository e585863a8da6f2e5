"""Small pictures of images: squares of one size, in sheets, and as text that a page can hold."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

BACKGROUND = (127, 127, 127)  # beside an image that is not square, in light and in dark


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Fits an image into a square, whole, and in its own proportions.

    Args:
      image: uint8 [H, W, C], C 1 or 3.
      side: of the square, pixels.

    Returns:
      uint8 [side, side, 3].
    """
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).convert("RGB")
    scale = side / max(picture.size)
    size = tuple(max(1, round(scale * length)) for length in picture.size)
    # An enlarged image keeps its pixels, a smaller one the mean of what it leaves out.
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), BACKGROUND)
    corner = tuple((side - length) // 2 for length in size)
    square.paste(picture.resize(size, kind), corner)
    return np.asarray(square)


def sheet(thumbnails: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lays thumbnails out in rows, in their order.

    Args:
      thumbnails: one or more, uint8 [side, side, 3] each.
      columns: in a row.

    Returns:
      uint8 [rows x side, columns x side, 3], grey where the last row ends early.
    """
    side = len(thumbnails[0])
    rows = -(-len(thumbnails) // columns)
    laid = np.full((rows, side, columns, side, 3), BACKGROUND, np.uint8)
    for place, pixels in enumerate(thumbnails):
        laid[place // columns, :, place % columns] = pixels
    return laid.reshape(rows * side, columns * side, 3)


def data_uri(pixels: np.ndarray, quality: int = 80) -> str:
    """An image as text for the src of a page's picture.

    Args:
      pixels: uint8 [H, W, 3], neither side above 16,383.
      quality: of WebP, from 0 to 100.

    Returns:
      "data:image/webp;base64,..."
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
