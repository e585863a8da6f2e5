"""Encoded images of every kind become uint8 pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from gsg_jax.data.decode import DECODE_ERRORS, decode

RED = (255, 0, 0)


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})],
)
@pytest.mark.parametrize("size", [(1, 1), (17, 5)])
def test_every_format_gives_the_pixels_that_were_saved(form, options, size):
    image = Image.new("RGB", size, (200, 100, 50))
    pixels = decode(encode(image, form, **options))
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(image).astype(int)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_on_request(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    turned = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(decode(encoded, exif=True), turned)
    np.testing.assert_array_equal(decode(encoded), pixels)


def test_every_kind_of_image_becomes_rgb():
    palette = Image.new("RGB", (2, 2), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    for image, colour in (
        (Image.new("L", (2, 2), 77), [77, 77, 77]),
        (palette, [10, 200, 30]),
        (Image.fromarray(np.full((2, 2), 77 * 257, np.uint16)), [77, 77, 77]),
        (Image.new("1", (2, 2), 1), [255, 255, 255]),
    ):
        assert decode(encode(image))[0, 0].tolist() == colour
    cmyk = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(cmyk[0, 0].astype(int) - RED).max() <= 3


def test_what_is_transparent_becomes_white():
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    assert decode(encode(rgba))[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert decode(encode(rgba.convert("LA")))[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    assert decode(encode(palette, transparency=1))[0].tolist() == [[9, 9, 9], [255, 255, 255]]


def test_one_channel_is_luminance():
    pixels = decode(encode(Image.new("RGB", (3, 2), RED)), channels=1)
    assert pixels.shape == (2, 3, 1)
    assert np.unique(pixels).tolist() == [76]  # 0.299 * 255


def test_formats_that_start_other_programs_are_refused():
    with pytest.raises(DECODE_ERRORS):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
