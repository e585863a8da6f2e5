"""Encoded images of every kind become uint8 pixels."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.data.decode import DECODE_ERRORS, decode, header_shape, read_photo

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


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_header_and_a_decoded_image_agree_on_an_orientation_in_xmp(orientation):
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
    encoded = encode(Image.new("RGB", (5, 3)), "JPEG", xmp=xmp.encode())
    height, width = (5, 3) if orientation == 6 else (3, 5)
    assert decode(encoded, exif=True).shape == (height, width, 3)
    assert header_shape(io.BytesIO(encoded)) == (height, width, 3)


@pytest.mark.parametrize("largest", [255, 2**31 - 1])
def test_integers_of_32_bits_are_refused_instead_of_becoming_black_or_white(largest):
    ramp = np.linspace(0, largest, 12).astype(np.int32).reshape(3, 4)
    with pytest.raises(ValueError, match="its pixels have 32 bits: save it with 8 or 16"):
        decode(encode(Image.fromarray(ramp), "TIFF"))


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


def png16(values, sbit=None):
    """A PNG file of 16 bits: gray [H, W], with opacity [H, W, 2], colour [H, W, 3] or 4.

    Pillow writes no sBIT.
    """

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    height, width, kind = *values.shape[:2], {(): 0, (2,): 4, (3,): 2, (4,): 6}[values.shape[2:]]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    head += chunk(b"sBIT", bytes(sbit)) if sbit else b""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


@pytest.mark.parametrize("num_bits", [9, 10, 12, 14, 16])
def test_the_bits_that_a_file_says_it_uses_are_scaled_to_eight(num_bits):
    values = np.random.default_rng(0).integers(0, 2**num_bits, (5, 7), dtype=np.uint16)
    np.testing.assert_array_equal(
        decode(png16(values, [num_bits]), channels=1)[..., 0], values >> (num_bits - 8)
    )
    largest = encode(Image.fromarray(values), "TIFF", tiffinfo={281: 2**num_bits - 1})
    np.testing.assert_array_equal(decode(largest, channels=1)[..., 0], values >> (num_bits - 8))


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
@pytest.mark.parametrize("num_bits", [9, 10, 12, 14])
def test_colours_and_opacity_of_fewer_than_16_bits_are_those_of_the_file(num_bits, num_channels):
    values = np.random.default_rng(0).integers(0, 2**num_bits, (5, 7, num_channels), np.uint16)
    values[0, 0] = 2**num_bits - 1
    said = [num_bits] * num_channels
    if num_channels > 2:
        said[1] = 8  # green has fewer: the largest counts
        values[..., 1] >>= num_bits - 8
    eight = (values >> (num_bits - 8)).astype(np.float64)
    colours = eight[..., :3] if num_channels > 2 else eight[..., :1]
    if num_channels in (2, 4):  # on white
        opacity = eight[..., -1:] / 255
        colours = colours * opacity + 255 * (1 - opacity)
    # The file may hold the values as they are, or in the highest bits as the format prescribes.
    for stored in (values, values << (16 - num_bits)):
        image = stored[..., 0] if num_channels == 1 else stored
        pixels = decode(png16(image, said)).astype(np.float64)
        assert np.abs(pixels - colours).max() <= (1 if num_channels in (2, 4) else 0)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_values_of_12_bits_are_not_nearly_black_if_the_file_says_nothing(shape):
    values = np.random.default_rng(0).integers(0, 2**12, shape, dtype=np.uint16)
    expected = (values >> 4).reshape(5, 7, -1)
    for encoded in (png16(values), png16(values << 4)):  # the second has 16 bits
        np.testing.assert_array_equal(decode(encoded, channels=3), expected + np.zeros(3, int))


def test_a_photograph_that_pillow_calls_a_bomb_is_read_at_a_reduced_scale(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    encoded = encode(Image.new("RGB", (50, 40), RED), "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(encoded)
    pixels = decode(encoded)
    assert pixels.shape == (10, 13, 3) == header_shape(tmp_path / "a.jpg")
    assert np.abs(pixels.astype(int) - RED).max() <= 3
    with pytest.raises(DECODE_ERRORS, match="bomb"):
        decode(encode(Image.new("RGB", (50, 40))))


def test_a_file_that_is_cut_is_known_without_decoding_every_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "GIF", "WEBP"):
        encoded, path = encode(Image.fromarray(noise), kind), tmp_path / f"a.{kind}"
        path.write_bytes(encoded)
        assert header_shape(path) == (40, 50, 3)
        path.write_bytes(encoded + b"what a camera adds")
        assert header_shape(path) == (40, 50, 3)
        path.write_bytes(encoded[:900])
        with pytest.raises(DECODE_ERRORS):
            header_shape(path)


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


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="pipe.jpg .not a file."):
        read_photo(tmp_path / "pipe.jpg", 3)


def test_formats_that_start_other_programs_are_refused():
    with pytest.raises(DECODE_ERRORS):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
