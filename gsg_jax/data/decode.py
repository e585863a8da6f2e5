"""Decodes images with Pillow."""

import functools
import io
import os
import re
import struct
import warnings
import zlib
from typing import IO

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError, features

from gsg_jax.console import UserError

# Pillow's warnings about EXIF data and large images name no file; failures raise an error.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow's errors for files that are broken, cut short, or claim to be absurdly large.
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
    "GIF": (".gif",),  # the first of several frames or pages
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
_ORIENTATION_TAG, _BITS_TAG, _MAX_SAMPLE_TAG = 0x0112, 258, 281
# The last bytes of files, for formats with fixed ones.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
# Pillow's names for 16-bit colours of PNG, and for reading their low bytes.
_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}
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
        become white. 16 bits become the highest 8 of those that the file says it uses (sBIT of
        PNG, BitsPerSample or MaxSampleValue of TIFF), if its values need no more; of 12 if the file
        says nothing and all values are below 4096.
      exif: whether to apply the orientation in the EXIF data.

    Returns:
      uint8 [H, W, channels] in [0, 255]. A JPEG file that Pillow calls a bomb (above some 179
      million pixels) is read at the largest of 1/2, 1/4 and 1/8 of its sides below half that.

    Raises:
      One of DECODE_ERRORS: if it cannot be decoded.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with _open(file) as image:
        if image.format == "PNG" and image.tile and image.tile[0].args in _LOW_BYTES:
            _keep_low_bits(image, file)
        return image_pixels(image, channels=channels, exif=exif)


def _keep_low_bits(image: Image.Image, file: str | os.PathLike[str] | IO[bytes]) -> None:
    """Reduces 16-bit colours that use fewer bits to 8; Pillow keeps only the high byte."""
    kind, bits = image.tile[0].args, _png_bits(image)
    high = np.asarray(image)
    # Opacity has its own bits.
    parts = (high[..., :3], bits[0] or 12), (high[..., 3:], bits[-1] or 12)
    if all(part.max() >= 2 ** (num_bits - 8) for part, num_bits in parts if part.size):
        return  # they need all 16
    with _open(file) as again:
        again.tile = [again.tile[0]._replace(args=_LOW_BYTES[kind])]
        low = np.asarray(again)[..., [1, 1, 1, 3] if kind == "LA;16B" else slice(None)]
    values = high.astype(np.uint16) << 8 | low
    colours = _eight_bits(values[..., :3], bits[0] or 12)
    opacity = _eight_bits(values[..., 3:], bits[-1] or 12)
    image.paste(Image.fromarray(np.concatenate([colours, opacity], -1)))


def _png_bits(image: Image.Image) -> tuple[int | None, ...]:
    """How many of 16 bits a PNG file says its colours and opacity use; None if it does not say."""
    place = image.fp.tell()
    image.fp.seek(0)
    # The chunk has a byte for each channel; it precedes the pixels.
    found = re.search(rb"\x00\x00\x00([\x01-\x04])sBIT(.{4})", image.fp.read(place), re.DOTALL)
    image.fp.seek(place)
    if not found:
        return (None,)
    bits = [min(max(x, 8), 16) for x in found[2][: found[1][0]]]
    return max(bits[: 1 if len(bits) < 3 else 3]), bits[-1]


def _eight_bits(values: np.ndarray, num_bits: int) -> np.ndarray:
    """The highest 8 of some bits; of 16 if the values need more, since PNG's sBIT allows both."""
    num_bits = num_bits if values.max(initial=0) < 2**num_bits else 16
    return (values >> (num_bits - 8)).clip(0, 255).astype(np.uint8)


def image_pixels(image: Image.Image, *, channels: int = 3, exif: bool = False) -> np.ndarray:
    """Converts an image of Pillow as `decode` does; it is loaded if it was not."""
    num_bits = _said_bits(image)
    image.load()
    turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG)) if exif else None
    turned = image if turn is None else image.transpose(turn)
    pixels = np.asarray(_convert(turned, "L" if channels == 1 else "RGB", num_bits))
    return pixels.reshape(*pixels.shape[:2], channels)


def _open(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Opens an image without decoding it; a very large photograph at a reduced scale."""
    try:
        return Image.open(file, formats=readable_formats())
    except Image.DecompressionBombError:
        if isinstance(file, io.BytesIO):
            file.seek(0)
        try:
            image = JpegImagePlugin.JpegImageFile(file)
        except SyntaxError:
            image = None
        if image is None:  # another format, which cannot be reduced
            raise
    width, height = image.size
    scale = next(s for s in (2, 4, 8) if width * height <= s * s * Image.MAX_IMAGE_PIXELS)
    image.draft(None, (width // scale, height // scale))
    return image


def _said_bits(image: Image.Image) -> int | None:
    """How many of 16 bits an opened, unloaded file says it uses; None if it does not say."""
    if image.format == "PNG" and getattr(image, "fp", None):
        return _png_bits(image)[0]
    if image.format == "TIFF":
        (num_bits, *_) = image.tag_v2.get(_BITS_TAG) or (16,)
        largest = np.ravel(image.tag_v2.get(_MAX_SAMPLE_TAG) or 0)[0]
        num_bits = int(largest).bit_length() or num_bits
        if num_bits > 16 and image.mode == "I":
            raise ValueError(f"its pixels have {num_bits} bits: save it with 8 or 16")
        return None if num_bits == 16 and not largest else min(max(num_bits, 8), 16)
    return 16 if image.format == "PPM" else None  # Pillow has scaled it


def read_photo(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """Decodes an image file, rotated as its camera says.

    Args:
      path: of the file.
      channels: 3 for RGB, 1 for grayscale.

    Returns:
      uint8 [H, W, channels].

    Raises:
      UserError: if it cannot be decoded, or takes too much memory.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would block
        raise UserError(f"cannot decode {path} (not a file): give an image file")
    try:
        return decode(path, channels=channels, exif=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: check the path") from error
    except MemoryError as error:
        raise UserError(f"not enough memory for {path}: make it smaller or remove it") from error
    except DECODE_ERRORS as error:
        raise UserError(
            f"cannot decode {path} ({reason(error)}): give a file of {' '.join(extensions())}"
        ) from error


def reason(error: Exception) -> str:
    """What is wrong with a file, in a few words, from one of DECODE_ERRORS or a MemoryError."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of another format"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def header_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Returns (H, W, 3) of an image file after its EXIF orientation, from its header.

    A file whose end is not its format's, since it was cut or something follows, is decoded.

    Raises:
      One of DECODE_ERRORS: if the header cannot be read, or such a file cannot be decoded.
    """
    with _open(path) as image:
        if (end := _ENDS.get(image.format)) and not _ends_with(image.fp, end):
            image.load()
        width, height = image.size
        # Asked first, since getexif() decodes a whole PNG if the header has no EXIF data.
        has_exif = not {"exif", "xmp"}.isdisjoint(image.info) or image.format == "AVIF"
        if has_exif and image.getexif().get(_ORIENTATION_TAG, 1) >= 5:
            width, height = height, width
    return height, width, 3


def _ends_with(file: IO[bytes], end: bytes) -> bool:
    place = file.tell()
    file.seek(-len(end), os.SEEK_END)
    is_end = file.read() == end
    file.seek(place)
    return is_end


def _convert(image: Image.Image, mode: str, num_bits: int | None) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # convert() clips 16-bit values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        if values.max(initial=0) >= 2**16:
            raise ValueError("its pixels have more than 16 bits: save it with 8 or 16")
        if num_bits is None:
            num_bits = 12 if image.mode.startswith("I;16") else 16
        image = Image.fromarray(_eight_bits(values, num_bits))
    elif image.has_transparency_data:
        # Without this, the arbitrary colours under transparent pixels would show.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)
