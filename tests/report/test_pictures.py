"""Thumbnails show whole images, sheets fit, and views are those of the step."""

import base64
import io

import jax
import numpy as np
import pytest
from PIL import Image

from gsg_jax.config.load import view_recipe
from gsg_jax.data.augment import make_views
from gsg_jax.data.source import ArraySource, BrokenImage, first_image
from gsg_jax.report import pictures
from gsg_jax.report.pictures import BACKGROUND, data_uri, filled, sheet, thumbnail
from tests.small import images, small_config


def read(uri: str) -> np.ndarray:
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), int
    )


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


@pytest.mark.parametrize("shape", [(40, 120, 3), (121, 40, 1), (40, 40, 3)])
def test_a_square_is_filled_with_the_middle_of_an_image(shape):
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    top, left = (shape[0] - 40) // 2, (shape[1] - 40) // 2
    middle = np.broadcast_to(image[top : top + 40, left : left + 40], (40, 40, 3))
    np.testing.assert_array_equal(filled(image, 40), middle)
    assert filled(image, 7).shape == (7, 7, 3)


def test_many_photographs_have_smaller_thumbnails():
    photo = np.zeros((1, 200, 300, 3), np.uint8)
    for num, side in ((40, 160), (pictures.SHEET_PIXELS // 100**2, 100)):
        source = ArraySource("photos", np.broadcast_to(photo, (num, 200, 300, 3)))
        assert pictures.thumbnail_side(source) == side
    small = ArraySource("small", np.zeros((9, 28, 30, 1), np.uint8))
    assert pictures.thumbnail_side(small) == 28


def test_an_enlarged_image_keeps_its_pixels():
    image = np.random.default_rng(0).integers(0, 255, (4, 4, 1)).astype(np.uint8)
    expected = np.kron(image[:, :, 0], np.ones((3, 3), np.uint8))
    np.testing.assert_array_equal(thumbnail(image, 12)[:, :, 1], expected)


def test_a_sheet_has_its_thumbnails_in_rows():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (5, 5, 3)).astype(np.uint8) for _ in range(8)]
    laid = sheet(pictures, 3)
    assert laid.shape == (15, 15, 3)
    for place, pixels in enumerate(pictures):
        row, column = divmod(place, 3)
        np.testing.assert_array_equal(laid[5 * row :, 5 * column :][:5, :5], pixels)
    assert (laid[10:, 10:] == BACKGROUND).all()


def test_every_image_has_its_place_on_the_sheets():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (1030, 1, 1, 3)).astype(np.uint8)
    source = ArraySource("plain", np.broadcast_to(colours, (1030, 9, 6, 3)))
    sheets = pictures.thumbnail_sheets(source)
    assert (sheets.num, sheets.side, len(sheets.uris)) == (1030, 6, 2)
    shown = [read(uri) for uri in sheets.uris]
    for image in (0, 31, 32, 1023, 1024, 1029):
        row, column = divmod(image % 1024, 32)
        square = shown[image // 1024][6 * row :, 6 * column :][:6, :6]
        assert np.abs(square[3, 3] - colours[image, 0, 0]).max() < 60  # WebP blurs the edges


def test_sheets_above_the_limit_lose_quality_and_then_the_last_images():
    rng = np.random.default_rng(0)
    source = ArraySource("noise", rng.integers(0, 255, (2100, 6, 6, 3)).astype(np.uint8))
    whole = pictures.thumbnail_sheets(source)
    size = sum(map(len, whole.uris))
    smaller = pictures.thumbnail_sheets(source, size - 1)
    assert smaller.num == 2100 and sum(map(len, smaller.uris)) < size
    least = pictures.thumbnail_sheets(source, 0)
    assert (least.num, least.uris) == (0, [])
    first = sheet([thumbnail(source.image(n), 6) for n in range(1024)], pictures.COLUMNS)
    lowest = data_uri(first, pictures.QUALITIES[-1])
    fewest = pictures.thumbnail_sheets(source, len(lowest) + 9)
    assert (fewest.num, len(fewest.uris)) == (1024, 1)


@pytest.mark.extended
def test_views_of_a_large_image_are_of_the_whole_image():
    image = np.zeros((100, 2000, 3), np.uint8)
    image[:, -40:, 0] = 255  # red at its end
    shown = read(pictures.augmentation_sheet(image, small_config("simsiam_gsg"))[0].uri)
    rows = shown[len(shown) // 2]
    assert rows[-2, 0] > 150 and rows[2, 0] < 90


def test_damaged_images_are_black_and_the_views_are_of_the_first_that_is_not():
    class Damaged(ArraySource):
        def image(self, index):
            if index != 3:
                raise BrokenImage(f"image {index} is damaged")
            return super().image(index)

    source = Damaged("some", images(5))
    assert pictures.shortest_side(source) == min(source.images.shape[1:3])
    np.testing.assert_array_equal(first_image(source), source.images[3])
    uris = pictures.image_uris(source, [3, 0])
    assert read(uris[0]).max() == 0 < read(uris[3]).max()


def test_single_images_are_those_of_their_rows():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (9, 1, 1, 3)).astype(np.uint8)
    source = ArraySource("plain", np.broadcast_to(colours, (9, 8, 8, 3)))
    found = pictures.image_uris(source, [7, 2, 7])
    assert all(uri.startswith("data:image/webp;base64,") for uri in found.values())
    assert set(found) == {2, 7}
    for row, uri in found.items():
        assert np.abs(read(uri)[4, 4] - colours[row, 0, 0]).max() < 12


def test_the_views_are_drawn_as_the_step_draws_them():
    config = small_config("simsiam_gsg")
    config.views.num_local = 3
    config.views.local_size = 8
    image = images(1)[0]
    shown = pictures.augmentation_sheet(image, config)
    names = [view.name for view in shown]
    assert names == [
        "image",
        *(f"view {n}" for n in range(1, pictures.NUM_VIEWS + 1)),
        *(f"local view {n}" for n in range(1, 4)),
    ]
    recipe = view_recipe(config.views)
    key, _ = jax.random.split(jax.random.key(config.run.seed))
    draw = jax.jit(make_views, static_argnums=(2, 3))
    views = np.asarray(draw(image[None], key, recipe, pictures.NUM_VIEWS))
    for view, expected in zip(shown[1:], views, strict=False):
        pixels = expected * np.array(recipe.std)[None, None] + np.array(recipe.mean)[None, None]
        pixels = np.round(255 * pixels.clip(0, 1)).astype(np.uint8)
        assert np.abs(read(view.uri) - thumbnail(pixels, 12)).mean() < 15
    assert read(shown[-1].uri).shape == (8, 8, 3)
