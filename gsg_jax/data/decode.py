"""Decodes images with Pillow."""

import functools
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, features

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
# Extensions by format. Limited, since a file name proves no format and some of Pillow's readers
# start programs (EPS).
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),  # of several frames or pages, the first
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
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


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Returns the formats that this installation decodes: AVIF and HEIF need gsg_jax[heif]."""
    missing = set() if features.check("avif") else {"AVIF"}
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        missing.add("HEIF")
    return tuple(name for name in _FORMATS if name not in missing)


def extensions(*, readable: bool = True) -> tuple[str, ...]:
    """Returns the extensions of images that this installation decodes, or of those it cannot."""
    known = readable_formats()
    return tuple(e for name, of in _FORMATS.items() if (name in known) == readable for e in of)


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
    with Image.open(file, formats=readable_formats()) as image:
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
            f"cannot decode {path} ({reason}): give a file of {' '.join(extensions())}"
        ) from error


def header_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Returns (H, W, 3) of an image file after its EXIF orientation, from its header alone.

    Raises:
      One of DECODE_ERRORS: if the header cannot be read.
    """
    with Image.open(path, formats=readable_formats()) as image:
        width, height = image.size
        # Asked first, since getexif() decodes a whole PNG if the header has no EXIF data.
        has_exif = "exif" in image.info or image.format == "AVIF"
        if has_exif and image.getexif().get(_ORIENTATION_TAG, 1) >= 5:
            width, height = height, width
    return height, width, 3


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # convert() clips 16-bit values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        # Without this, the arbitrary colours under transparent pixels would show.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)
