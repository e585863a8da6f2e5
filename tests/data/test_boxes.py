"""Crops against Pillow and torchvision's boxes, on images of odd and oblong sizes."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from gsg_jax.data import augment, crops
from tests.data.test_colours import floats, keys

ASPECT = (3 / 4, 4 / 3)


def pillow_crop(image, top, left, height, width, size):
    planes = [
        Image.fromarray(np.ascontiguousarray(image[..., c]))
        .crop((left, top, left + width, top + height))
        .resize((size, size), Image.Resampling.BILINEAR)
        for c in range(image.shape[-1])
    ]
    assert planes[0].mode == "F"
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


@pytest.mark.parametrize(
    ("shape", "size"), [((31, 45, 3), 9), ((45, 31, 1), 16), ((17, 12, 3), 37)]
)
def test_a_resized_crop_is_pillows_crop_then_antialiased_bilinear(shape, size):
    height, width, _ = shape
    image, rng = floats(0, *shape), np.random.default_rng(1)
    boxes = [(0, 0, height, width), (5, 7, 1, 1), (3, 0, 2, width), (0, 4, height, 3)]
    boxes += [(height - 3, width - 5, 3, 5), (1, 2, size % 11 + 1, size % 11 + 1)]
    for _ in range(34):
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        boxes.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
    crop = jax.jit(jax.vmap(partial(augment.resized_crop, image, size=size)))
    ours = crop(*jnp.array(boxes, jnp.float32).T)
    for box, view in zip(boxes, ours, strict=True):
        expected = pillow_crop(image, *map(int, box), size)
        np.testing.assert_allclose(view, expected, atol=1e-5, err_msg=str(box))


NUM_BOXES = 3080
BOX_CASES = [(31, 45, (0.2, 1.0)), (61, 20, (0.08, 1.0)), (28, 28, (0.4, 1.0))]


@cache
def device_boxes(height, width, area, aspect=ASPECT):
    """Top, left, height and width of NUM_BOXES boxes, [4, NUM_BOXES] of float64."""
    draw = partial(augment.draw_crop_box, height=height, width=width, area=area, aspect=aspect)
    # Not under jit: the shapes are always the same, so each operation compiles once for all.
    return np.array(jax.vmap(draw)(keys(0, NUM_BOXES)), np.float64)


@cache
def host_boxes(height, width, area, aspect=ASPECT):
    """The same, as the loader draws them."""
    rng = np.random.default_rng(1)
    boxes = [crops.draw_box(rng, height, width, area, aspect) for _ in range(NUM_BOXES)]
    left, top, right, bottom = np.array(boxes, np.float64).T
    return np.array([top, left, bottom - top, right - left])


BOTH = pytest.mark.parametrize("draw_boxes", [device_boxes, host_boxes])


def torchvision_box(rng, height, width, area, aspect):
    """RandomResizedCrop.get_params, line by line."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    ratio = width / height
    if ratio < aspect[0]:
        h, w = round(width / aspect[0]), width
    elif ratio > aspect[1]:
        h, w = height, round(height * aspect[1])
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("aspect", [(60.0, 100.0), (0.01, 0.015)])
def test_a_box_of_an_extreme_aspect_keeps_a_pixel(aspect):
    sides = np.sort(device_boxes(28, 28, (0.5, 1.0), aspect)[2:], axis=0)
    assert (sides[0] == 1).all() and (sides[1] == 28).all()


@BOTH
@pytest.mark.parametrize(("height", "width", "area"), BOX_CASES)
def test_boxes_are_of_whole_pixels_within_the_limits_and_distributed_as_torchvisions(
    draw_boxes, height, width, area
):
    ours = top, left, h, w = draw_boxes(height, width, area)
    np.testing.assert_array_equal(ours, np.round(ours))
    assert top.min() == 0 and left.min() == 0 and h.min() > 0 and w.min() > 0
    assert (top + h).max() == height and (left + w).max() == width

    # Each side is rounded by at most half a pixel.
    assert np.all((h + 0.5) * (w + 0.5) >= area[0] * height * width)
    assert np.all((h - 0.5) * (w - 0.5) <= area[1] * height * width)
    assert np.all((w + 0.5) / (h - 0.5) >= ASPECT[0])
    assert np.all((w - 0.5) / (h + 0.5) <= ASPECT[1])

    rng = np.random.default_rng(0)
    boxes = [torchvision_box(rng, height, width, area, ASPECT) for _ in range(NUM_BOXES)]
    theirs = np.array(boxes).T
    for name, a, b in (
        *zip(("top", "left", "height", "width"), ours, theirs, strict=True),
        *(("area", h * w, theirs[2] * theirs[3]), ("aspect", w / h, theirs[3] / theirs[2])),
    ):
        assert scipy.stats.ks_2samp(a, b).pvalue > 0.01, name


@BOTH
def test_a_box_lies_anywhere_with_equal_chance_rows_and_columns_apart(draw_boxes):
    # A box of 10 x 6 in 20 x 12 pixels: 11 x 7 places.
    top, left, h, w = draw_boxes(20, 12, (0.25, 0.25), (0.6, 0.6))
    assert set(h) == {10.0} and set(w) == {6.0}
    places = np.histogram2d(top, left, bins=(np.arange(12), np.arange(8)))[0]
    assert places.sum() == NUM_BOXES
    assert scipy.stats.chisquare(places.ravel()).pvalue > 0.01


@BOTH
@pytest.mark.parametrize(
    ("height", "width", "area", "box"),
    [
        (10, 200, (0.9, 1.0), (0, 93, 10, 13)),  # too wide: all its height, aspect 4/3, centred
        (200, 10, (0.9, 1.0), (93, 0, 13, 10)),
        (31, 45, (0.99, 1.0), (0, 2, 31, 41)),
        (30, 33, (1.3, 1.4), (0, 0, 30, 33)),  # within the limits: the whole image
        (1, 1, (0.01, 0.02), (0, 0, 1, 1)),  # every draw rounds to no pixel
    ],
)
def test_where_no_attempt_fits_the_box_is_the_largest_centred_one(
    draw_boxes, height, width, area, box
):
    for values, expected in zip(draw_boxes(height, width, area), box, strict=True):
        np.testing.assert_array_equal(values, expected)
