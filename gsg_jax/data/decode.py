"""Decodes images with Pillow."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from gsg_jax.console import UserError

# Errors of Pillow on files that are broken, cut short, or claim to be absurdly large.
DECODE_ERRORS = (
    OSError,  # cut short, unreadable, UnidentifiedImageError
    SyntaxError,  # broken PNG chunks
    ValueError,
    TypeError,  # malformed EXIF
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Limited, since a file name proves no format and some of Pillow's readers start programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION_TAG = 0x0112
# Not ImageOps.exif_transpose: it also writes the EXIF back, and fails if that is malformed.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    encoded: bytes | str | os.PathLike[str], *, channels: int = 3, exif: bool = False
) -> np.ndarray:
    """Decodes one image.

    Args:
      encoded: the file's content, or its path.
      channels: 3 for RGB, 1 for grayscale; any kind of image is converted. Transparent pixels
        become white, 16 bits become 8.
      exif: whether to apply the orientation in the EXIF data.

    Returns:
      uint8 [H, W, channels] in [0, 255].

    Raises:
      One of DECODE_ERRORS: if it cannot be decoded.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with Image.open(file, formats=_FORMATS) as image:
        return image_pixels(image, channels=channels, exif=exif)


def image_pixels(image: Image.Image, *, channels: int = 3, exif: bool = False) -> np.ndarray:
    """Converts an image of Pillow as `decode` does; it is loaded if it was not."""
    image.load()
    turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG)) if exif else None
    turned = image if turn is None else image.transpose(turn)
    pixels = np.asarray(_convert(turned, "L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def read_photo(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """Decodes an image file, rotated as its camera says.

    Args:
      path: of the file.
      channels: 3 for RGB, 1 for grayscale.

    Returns:
      uint8 [H, W, channels].

    Raises:
      UserError: if it cannot be decoded.
    """
    try:
        return decode(path, channels=channels, exif=True)
    except DECODE_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"cannot decode {path} ({reason}): give a JPEG, PNG or WebP file"
        ) from error


def header_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Returns (H, W, 3) of an image file after its EXIF orientation, from its header alone.

    Raises:
      One of DECODE_ERRORS: if the header cannot be read.
    """
    with Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
        # Asked first, since getexif() decodes a whole PNG if the header has no EXIF data.
        if "exif" in image.info and image.getexif().get(_ORIENTATION_TAG, 1) >= 5:
            width, height = height, width
    return height, width, 3


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # convert() clips 16-bit values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        # Without this, the arbitrary colours under transparent pixels would show.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)
