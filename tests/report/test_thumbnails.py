"""Thumbnails show whole images, in their own proportions and places."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from gsg_jax.report.thumbnails import BACKGROUND, data_uri, sheet, thumbnail


@pytest.mark.parametrize("shape", [(10, 30, 3), (30, 10, 1), (300, 100, 3), (7, 7, 1)])
def test_a_thumbnail_holds_the_whole_image_in_its_proportions(shape):
    image = np.full(shape, 200, np.uint8)
    pixels = thumbnail(image, 24)
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    is_image = (pixels == 200).all(axis=2)
    height, width = is_image.any(axis=1).sum(), is_image.any(axis=0).sum()
    assert max(height, width) == 24
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.1)
    assert (pixels[~is_image] == BACKGROUND).all()


def test_an_enlarged_image_keeps_its_pixels():
    image = np.random.default_rng().integers(0, 255, (4, 4, 1)).astype(np.uint8)
    expected = np.kron(image[:, :, 0], np.ones((3, 3), np.uint8))
    np.testing.assert_array_equal(thumbnail(image, 12)[:, :, 1], expected)


def test_a_sheet_has_its_thumbnails_in_rows():
    rng = np.random.default_rng()
    pictures = [rng.integers(0, 255, (5, 5, 3)).astype(np.uint8) for _ in range(8)]
    laid = sheet(pictures, 3)
    assert laid.shape == (15, 15, 3)
    for place, pixels in enumerate(pictures):
        row, column = divmod(place, 3)
        np.testing.assert_array_equal(laid[5 * row :, 5 * column :][:5, :5], pixels)
    assert (laid[10:, 10:] == BACKGROUND).all()


def test_a_data_uri_is_the_picture():
    rng = np.random.default_rng()
    pixels = np.kron(rng.integers(0, 255, (4, 6, 1)), np.ones((8, 8, 3))).astype(np.uint8)
    head, text = data_uri(pixels, 95).split(",")
    assert head == "data:image/webp;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"), int)
    assert shown.shape == pixels.shape
    assert np.abs(shown - pixels).mean() < 12
    assert len(data_uri(pixels, 10)) < len(data_uri(pixels, 95))
