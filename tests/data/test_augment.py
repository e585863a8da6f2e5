"""Views against Pillow, SciPy, colorsys and plain NumPy, on images of odd and oblong sizes."""

import colorsys
import itertools
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from gsg_jax.data import augment, colours
from gsg_jax.data.augment import ViewRecipe

ASPECT = (3 / 4, 4 / 3)

# Every operation off: a square image of `size` comes back as it is.
PLAIN = {
    "size": 8,
    "crop_area": (1.0, 1.0),
    "crop_aspect": (1.0, 1.0),
    "flip_probability": 0.0,
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "blur_probability": (0.0,),
    "blur_sigma": (0.1, 2.0),
    "solarize_probability": (0.0,),
    "mean": (0.0,),
    "std": (1.0,),
}


def recipe(**changes):
    return ViewRecipe(**{**PLAIN, **changes})


def uint8(seed, *shape, high=256):
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def floats(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


make_views = jax.jit(augment.make_views, static_argnums=(2, 3))


# --- Crop and flip -------------------------------------------------------------------------------


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


@cache
def draw_boxes(height, width, area, aspect=ASPECT):
    """Top, left, height and width of NUM_BOXES boxes, [4, NUM_BOXES] of float64."""
    draw = partial(augment.draw_crop_box, height=height, width=width, area=area, aspect=aspect)
    # Not under jit: the shapes are always the same, so each operation compiles once for all.
    return np.array(jax.vmap(draw)(keys(0, NUM_BOXES)), np.float64)


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
    _, _, h, w = augment.draw_crop_box(jax.random.key(0), 28, 28, (0.5, 1.0), aspect)
    assert min(h, w) == 1 and max(h, w) == 28


NUM_BOXES = 3080
BOX_CASES = [(31, 45, (0.2, 1.0)), (61, 20, (0.08, 1.0)), (28, 28, (0.4, 1.0))]


@pytest.mark.parametrize(("height", "width", "area"), BOX_CASES)
def test_boxes_are_of_whole_pixels_inside_the_image_and_within_the_limits(height, width, area):
    top, left, h, w = draw_boxes(height, width, area)
    for values in (top, left, h, w):
        np.testing.assert_array_equal(values, np.round(values))
    assert top.min() == 0 and left.min() == 0 and h.min() > 0 and w.min() > 0
    assert (top + h).max() == height and (left + w).max() == width

    # Each side is rounded by at most half a pixel.
    assert np.all((h + 0.5) * (w + 0.5) >= area[0] * height * width)
    assert np.all((h - 0.5) * (w - 0.5) <= area[1] * height * width)
    assert np.all((w + 0.5) / (h - 0.5) >= ASPECT[0])
    assert np.all((w - 0.5) / (h + 0.5) <= ASPECT[1])


@pytest.mark.parametrize(("height", "width", "area"), BOX_CASES)
def test_boxes_are_distributed_as_torchvisions(height, width, area):
    ours = draw_boxes(height, width, area)
    rng = np.random.default_rng(0)
    theirs = np.array(
        [torchvision_box(rng, height, width, area, ASPECT) for _ in range(NUM_BOXES)]
    ).T
    for name, a, b in zip(("top", "left", "height", "width"), ours, theirs, strict=True):
        assert scipy.stats.ks_2samp(a, b).pvalue > 0.01, name
    assert scipy.stats.ks_2samp(ours[2] * ours[3], theirs[2] * theirs[3]).pvalue > 0.01
    assert scipy.stats.ks_2samp(ours[3] / ours[2], theirs[3] / theirs[2]).pvalue > 0.01


def test_a_box_lies_anywhere_with_equal_chance_rows_and_columns_apart():
    # A box of 10 x 6 in 20 x 12 pixels: 11 x 7 places.
    top, left, h, w = draw_boxes(20, 12, (0.25, 0.25), (0.6, 0.6))
    assert set(h) == {10.0} and set(w) == {6.0}
    places = np.histogram2d(top, left, bins=(np.arange(12), np.arange(8)))[0]
    assert places.sum() == NUM_BOXES
    assert scipy.stats.chisquare(places.ravel()).pvalue > 0.01


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
def test_where_no_attempt_fits_the_box_is_the_largest_centred_one(height, width, area, box):
    for values, expected in zip(draw_boxes(height, width, area), box, strict=True):
        np.testing.assert_array_equal(values, expected)
    assert torchvision_box(np.random.default_rng(0), height, width, area, ASPECT) == box


# --- Colours -------------------------------------------------------------------------------------

LUMA = np.array([0.299, 0.587, 0.114])


def plain_gray(x):
    return x if x.shape[-1] == 1 else np.repeat((x @ LUMA)[..., None], 3, axis=-1)


def plain_blend(x, other, factor):
    return np.clip(factor * x + (1 - factor) * other, 0, 1)


def plain_brightness(x, factor):
    return plain_blend(x, 0.0, factor)


def plain_contrast(x, factor):
    return plain_blend(x, plain_gray(x).mean((-3, -2, -1), keepdims=True), factor)


def plain_saturation(x, factor):
    return plain_blend(x, plain_gray(x), factor)


def plain_hue(x, turn):
    if x.shape[-1] == 1:
        return x
    h, s, v = np.vectorize(colorsys.rgb_to_hsv)(*np.moveaxis(x, -1, 0))
    turned = (h + np.asarray(turn)[..., 0]) % 1
    return np.stack(np.vectorize(colorsys.hsv_to_rgb)(turned, s, v), axis=-1)


PLAIN_OPERATIONS = (plain_brightness, plain_contrast, plain_saturation, plain_hue)


@pytest.mark.parametrize("shape", [(31, 45, 3), (13, 8, 1)])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_are_pillows_enhancers(name, shape):
    pixels = uint8(0, *shape)
    image = pixels.astype(np.float32) / 255
    factors = np.array([0, 0.3, 0.8, 1, 1.4, 3], np.float32)
    number = np.array([["brightness", "contrast", "saturation"].index(name)])
    adjust = jax.jit(jax.vmap(partial(colours.blends_in_order, image, number)))
    enhancer = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}[name]
    pillow = getattr(ImageEnhance, enhancer)(
        Image.fromarray(pixels[..., 0] if shape[-1] == 1 else pixels)
    )
    plain = {"brightness": plain_brightness, "contrast": plain_contrast}
    plain = plain.get(name, plain_saturation)
    for factor, ours in zip(factors, adjust(np.stack([factors] * 3, axis=1)), strict=True):
        np.testing.assert_allclose(ours, plain(image.astype(np.float64), factor), atol=2e-6)
        theirs = np.asarray(pillow.enhance(float(factor)), np.float32).reshape(shape) / 255
        # Pillow cuts the blend off to whole levels (1), and rounds the gray it blends with (0.5),
        # for contrast the mean of a rounded gray too (1); here nothing is rounded.
        levels = 1 + {"brightness": 0, "saturation": 0.5, "contrast": 1}[name] * abs(1 - factor)
        np.testing.assert_allclose(ours, theirs, atol=(levels + 0.01) / 255)


def test_hue_turns_as_colorsys_does():
    image = floats(1, 31, 45, 3)
    image[0, :8] = list(itertools.product([0.0, 1.0], repeat=3))  # black, primaries, white
    image[1, :10] = 0.37  # grays
    image[2, :, 1] = image[2, :, 0]  # two channels alike
    image[3, :, 2] = image[3, :, 1]
    image[4, :, 2] = image[4, :, 0]
    turns = np.array([-0.5, -0.31, -0.1, 0, 0.04, 0.25, 0.5], np.float32)
    adjust = jax.jit(jax.vmap(colours.adjust_hue, in_axes=(None, 0)))
    for turn, ours in zip(turns, adjust(image, turns), strict=True):
        expected = plain_hue(image.astype(np.float64), np.full((1, 1, 1), turn))
        np.testing.assert_allclose(ours, expected, atol=2e-6)
    np.testing.assert_allclose(ours[1, :10], image[1, :10], atol=1e-7)


def test_gray_is_the_luma_of_itu_601():
    pixels = uint8(2, 31, 45, 3)
    gray = colours.to_gray(pixels.astype(np.float32) / 255)
    np.testing.assert_allclose(gray, plain_gray(pixels / 255), atol=1e-6)
    levels = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)[..., None] / 255
    assert gray.shape == (31, 45, 3)
    np.testing.assert_allclose(gray, np.repeat(levels, 3, -1), atol=0.51 / 255)
    single = floats(3, 5, 4, 1)
    np.testing.assert_array_equal(colours.to_gray(single), single)


STRENGTHS = (0.9, 2.0, 4.0, 0.3)
LIMITS = ((0.1, 1.9), (0.0, 3.0), (0.0, 5.0), (-0.3, 0.3))
NUM_IMAGES, NUM_VIEWS = 220, 2
# Two rows of one colour each that show one operation alone, without clipping at its strength.
PROBES = (
    ((20, 20, 20), (20, 20, 20)),
    ((122, 122, 122), (132, 132, 132)),
    ((120, 130, 125), (120, 130, 125)),
    ((200, 100, 100), (200, 100, 100)),
)


@cache
def jitter(channels):
    """One picture in every view, jittered by the drawn amounts; [N, ...] where N is B x V.

    A key draws the same amounts whatever the picture and the other strengths are, so that pictures
    which show one operation alone tell them.

    Returns:
      (picture, jittered, jittered without a hue, amounts): float64; amounts are each view's
      factors of brightness, contrast and saturation, and its turn, [4, N] (of one channel [2, N]).
    """
    picture = uint8(3, 4, 5, channels)
    num_operations = 4 if channels == 3 else 2
    alone = [tuple(s * (i == op) for i, s in enumerate(STRENGTHS)) for op in range(num_operations)]
    probes = [np.array(PROBES[op], np.uint8)[:, None, :channels] for op in range(num_operations)]
    runs = [(picture, STRENGTHS), (picture, (*STRENGTHS[:3], 0.0))]
    runs += zip(probes, alone, strict=True)

    @jax.jit
    def run():
        views = []
        for pixels, strengths in runs:
            crops = jnp.broadcast_to(pixels, (NUM_IMAGES, NUM_VIEWS, *pixels.shape))
            draws = recipe(jitter=strengths, jitter_probability=1.0)
            views.append(augment.make_views(crops, jax.random.key(5), draws, NUM_VIEWS))
        return views

    jittered, hueless, *shown = (np.asarray(x, np.float64) for x in run())
    before = [probe / 255 for probe in probes]
    amounts = [
        shown[0][:, 0, 0, 0] / before[0][0, 0, 0],
        (shown[1][:, 1, 0, 0] - shown[1][:, 0, 0, 0]) / (before[1][1, 0, 0] - before[1][0, 0, 0]),
    ]
    if channels == 3:
        apart = before[2][0, 0, 0] - before[2][0, 0, 1]
        amounts.append((shown[2][:, 0, 0, 0] - shown[2][:, 0, 0, 1]) / apart)
        hues = np.array([colorsys.rgb_to_hsv(*rgb)[0] for rgb in shown[3][:, 0, 0]])
        amounts.append((hues + 0.5) % 1 - 0.5)
    return picture / 255, jittered, hueless, np.array(amounts)


def orders_found(picture, views, amounts):
    """Which order each view's operations came in, and whether no other order gives that view."""
    orders = list(itertools.permutations(range(len(amounts))))
    errors = np.empty((len(orders), len(views)))
    for row, order in enumerate(orders):
        image = np.broadcast_to(picture, views.shape)
        for operation in order:
            image = PLAIN_OPERATIONS[operation](image, amounts[operation][:, None, None, None])
        errors[row] = np.abs(image - views).max((1, 2, 3))
    assert errors.min(axis=0).max() < 2e-5  # every view is one order's
    return errors.argmin(axis=0), np.sort(errors, axis=0)[1] > 1e-3


@pytest.mark.parametrize("channels", [3, 1])
def test_jitter_draws_its_amounts_uniformly_and_independently(channels):
    _, _, _, amounts = jitter(channels)
    for amount, (low, high) in zip(amounts, LIMITS, strict=False):
        assert low - 1e-4 <= amount.min() and amount.max() <= high + 1e-4
        assert scipy.stats.kstest(amount, "uniform", (low, high - low)).pvalue > 0.01
    for a, b in itertools.combinations(amounts, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
    for amount in amounts:  # nor do an image's two views share them
        assert abs(np.corrcoef(amount[0::2], amount[1::2])[0, 1]) < 0.2


def test_jitter_is_the_four_operations_in_all_24_orders_drawn_for_each_view():
    picture, views, _, amounts = jitter(3)
    found, clear = orders_found(picture, views, amounts)
    # Blends commute unless something is clipped between them, so not every order can be told.
    assert clear.mean() > 0.5
    assert set(found[clear]) == set(range(24))
    both = (clear[0::2] & clear[1::2]).nonzero()[0]
    assert len(both) > 50
    assert np.mean(found[2 * both] == found[2 * both + 1]) < 0.15  # 1 / 24 by chance


def test_jitter_without_a_hue_takes_the_three_blends_in_all_6_orders():
    picture, _, views, amounts = jitter(3)
    found, clear = orders_found(picture, views, amounts[:3])
    assert set(found[clear]) == set(range(6))


def test_jitter_of_one_channel_is_brightness_and_contrast_in_both_orders():
    picture, views, hueless, amounts = jitter(1)
    found, clear = orders_found(picture, views, amounts)
    assert set(found[clear]) == {0, 1}
    np.testing.assert_array_equal(views, hueless)


# --- Blur, solarize, normalise -------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "radius"), [((31, 45, 3), 6), ((5, 9, 1), 6), ((8, 7, 3), 3)])
def test_blur_is_scipys_gaussian_filter_with_repeated_borders(shape, radius):
    image = floats(4, *shape)
    sigmas = np.array([0.1, 0.45, 1.0, 2.0, 5.0], np.float32)
    blur = jax.jit(jax.vmap(partial(colours.gaussian_blur, radius=radius), in_axes=(None, 0)))
    for sigma, ours in zip(sigmas, blur(image, sigmas), strict=True):
        expected = scipy.ndimage.gaussian_filter(
            image.astype(np.float64), sigma, mode="nearest", radius=radius, axes=(0, 1)
        )
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_blur_draws_its_sigma_uniformly_and_cuts_at_three_of_the_largest():
    impulse = np.zeros((1, 17, 1), np.float32)
    impulse[0, 8] = 1
    blur = partial(colours.random_blur, image=impulse, probability=1.0, sigma=(0.3, 2.0))
    blurred = np.asarray(jax.jit(jax.vmap(blur))(keys(1, 500)), np.float64)[:, 0, :, 0]
    sigmas = np.sqrt(-0.5 / np.log(blurred[:, 9] / blurred[:, 8]))
    assert sigmas.min() > 0.299 and sigmas.max() < 2.001
    assert scipy.stats.kstest(sigmas, "uniform", (0.3, 1.7)).pvalue > 0.01
    assert np.all(blurred[:, [1, 15]] == 0) and np.all(blurred[sigmas > 1][:, [2, 14]] > 0)


def test_solarize_is_pillows_on_every_level():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(levels), threshold=128)) / 255
    image = levels[..., None].astype(np.float32) / 255
    ours = colours.random_solarize(jax.random.key(0), image, 1.0)
    np.testing.assert_allclose(ours[..., 0], expected, atol=1e-6)
    np.testing.assert_array_equal(colours.random_solarize(jax.random.key(0), image, 0.0), image)


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    image = floats(5, 7, 4, 3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = colours.normalize_channels(image, mean, std)
    for c in range(3):
        expected = (image[..., c].astype(np.float64) - mean[c]) / std[c]
        np.testing.assert_allclose(ours[..., c], expected, atol=2e-6)


# --- Views ---------------------------------------------------------------------------------------

BYOL = recipe(
    crop_area=(0.08, 1.0),
    crop_aspect=ASPECT,
    flip_probability=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=(1.0, 0.1),
    solarize_probability=(0.0, 0.2),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
PHOTOS = uint8(6, 8, 21, 15, 3)


@cache
def byol_views(key=0):
    views = make_views(PHOTOS, jax.random.key(key), BYOL, 2)
    return np.asarray(views).reshape(8, 2, 8, 8, 3)


def test_views_are_float32_and_depend_on_the_key_alone():
    views = make_views(PHOTOS, jax.random.key(0), BYOL, 2)
    assert views.shape == (16, 8, 8, 3) and views.dtype == jnp.float32
    np.testing.assert_array_equal(views.reshape(8, 2, 8, 8, 3), byol_views())
    for other, view in zip(byol_views(1).reshape(views.shape), views, strict=True):
        assert np.abs(other - view).max() > 0.1


def test_the_views_of_an_image_differ_from_one_another_and_from_other_images():
    alike = np.broadcast_to(PHOTOS[:1], PHOTOS.shape)  # only the draws can differ
    views = np.asarray(make_views(alike, jax.random.key(0), BYOL, 2))
    for a, b in itertools.combinations(views, 2):
        assert np.abs(a - b).max() > 0.05


def test_a_view_does_not_change_with_the_other_images_of_the_batch():
    changed = PHOTOS.copy()
    changed[3] = 255 - changed[3]
    views = np.asarray(make_views(changed, jax.random.key(0), BYOL, 2)).reshape(8, 2, 8, 8, 3)
    same = np.array([i for i in range(8) if i != 3])
    np.testing.assert_array_equal(views[same], byol_views()[same])
    assert np.abs(views[3] - byol_views()[3]).max() > 0.1


@pytest.mark.extended
def test_eight_devices_draw_the_views_that_one_draws():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    sharded = jax.device_put(PHOTOS, NamedSharding(mesh, PartitionSpec("data")))
    views = make_views(sharded, jax.random.key(0), BYOL, 2)
    assert len(views.sharding.device_set) == 8
    np.testing.assert_allclose(np.asarray(views).reshape(8, 2, 8, 8, 3), byol_views(), atol=1e-5)


@pytest.mark.extended  # compiles every operation by itself
def test_views_are_the_same_without_jit():
    views = augment.make_views(PHOTOS, jax.random.key(0), BYOL, 2)
    np.testing.assert_allclose(views.reshape(8, 2, 8, 8, 3), byol_views(), atol=1e-5)


def test_views_stand_images_first():
    images = uint8(7, 4, 8, 8, 3)
    views = make_views(images, jax.random.key(0), recipe(mean=(0.25,), std=(0.5,)), 3)
    assert views.shape == (12, 8, 8, 3)
    for image in range(4):
        for view in range(3):
            expected = (images[image] / 255 - 0.25) / 0.5
            np.testing.assert_allclose(views[image * 3 + view], expected, atol=1e-5)


def test_host_crops_become_views_in_their_own_order():
    crops = uint8(8, 4, 3, 8, 8, 3)
    views = make_views(crops, jax.random.key(0), recipe(), 3)
    assert views.shape == (12, 8, 8, 3)
    for image in range(4):
        for view in range(3):
            np.testing.assert_allclose(views[image * 3 + view], crops[image, view] / 255, atol=1e-6)


def test_local_views_are_smaller_crops_that_count_on_from_the_global_ones():
    changes = {"num_local": 3, "local_size": 5, "local_crop_area": (0.1, 0.2)}
    ours = recipe(crop_aspect=ASPECT, solarize_probability=(0.0, 1.0, 0.0), **changes)
    views = jax.jit(augment.make_local_views, static_argnums=(2, 3))(
        PHOTOS, jax.random.key(1), ours, 2
    )
    # A recipe of one's own, whose cycle begins with the third of the three probabilities.
    alone = recipe(
        size=5, crop_area=(0.1, 0.2), crop_aspect=ASPECT, solarize_probability=(0.0, 0.0, 1.0)
    )
    expected = make_views(PHOTOS, jax.random.key(1), alone, 3)
    assert views.shape == (24, 5, 5, 3)
    np.testing.assert_allclose(views, expected, atol=1e-6)


def cutmix_often(views, keys, probability):
    """(mixed, partner, share) of cutmix by each of the keys."""
    mix = partial(augment.cutmix, jnp.asarray(views), num_views=2, probability=probability)
    return [np.asarray(x) for x in jax.jit(jax.vmap(mix))(keys)]


def test_a_patch_is_a_box_of_the_partner_at_the_same_place():
    views = floats(9, 14, 11, 11, 2)  # 7 images, 2 views
    shares, empty = [], 0
    for mixed, partner, share in zip(*cutmix_often(views, keys(9, 200), 1.0), strict=True):
        assert sorted(partner) == list(range(7))
        rows = np.repeat(2 * partner, 2) + np.tile([0, 1], 7)
        is_patch = (mixed == views[rows]).all(axis=-1)
        is_own = (mixed == views).all(axis=-1)
        assert (is_patch | is_own).all()
        moved = [n for n in range(14) if rows[n] != n]
        if not moved:
            continue
        box = is_patch[moved[0]]
        assert all((is_patch[n] == box).all() for n in moved)
        np.testing.assert_allclose(share, box.mean(), atol=1e-6)
        sides = [np.flatnonzero(box.any(axis=axis)) for axis in (0, 1)]
        if not box.any():
            empty += 1
        else:
            assert box[np.ix_(*[np.arange(s[0], s[-1] + 1) for s in sides[::-1]])].all()
        shares.append(share)
    assert 0.15 < np.mean(shares) < 0.45 and np.max(shares) > 0.8 and empty < 20


def test_patches_come_with_their_probability_and_else_nothing_changes():
    views = floats(10, 8, 6, 6, 1)
    mixed, _, share = cutmix_often(views, keys(11, 300), 0.3)
    pasted = share > 0
    assert 0.2 < np.mean(pasted) < 0.4
    np.testing.assert_array_equal(mixed[~pasted][0], views)


def test_flip_jitter_and_grayscale_come_with_their_probabilities_and_independently():
    num = 1200
    crops = uint8(9, num, 1, 3, 5, 3, high=170)  # not clipped by a brightness of 1.4
    draws = recipe(
        flip_probability=0.5,
        jitter=(0.4, 0.0, 0.0, 0.0),
        jitter_probability=0.8,
        grayscale_probability=0.2,
    )
    views = np.asarray(make_views(crops, jax.random.key(1), draws, 1), np.float64)
    counts = dict.fromkeys(itertools.product([False, True], repeat=3), 0)
    for crop, view in zip(crops[:, 0] / 255, views, strict=True):
        matches = []
        for flipped, gray in itertools.product([False, True], repeat=2):
            expected = crop[:, ::-1] if flipped else crop
            expected = plain_gray(expected) if gray else expected
            factor = np.sum(expected * view) / np.sum(expected**2)
            if np.abs(factor * expected - view).max() < 1e-4:
                assert 0.6 - 1e-4 < factor < 1.4 + 1e-4
                matches.append((flipped, abs(factor - 1) > 1e-5, gray))
        assert len(matches) == 1
        counts[matches[0]] += 1
    chances = [(0.5, 0.5), (0.2, 0.8), (0.8, 0.2)]
    expected = [
        num * math.prod(c[on] for c, on in zip(chances, ons, strict=True)) for ons in counts
    ]
    assert scipy.stats.chisquare(list(counts.values()), expected).pvalue > 0.01


def test_blur_and_solarize_come_with_the_probabilities_of_the_view_in_this_order():
    # BYOL's asymmetric pair; four views take the two in turns.
    num = 300
    crops = uint8(10, num, 4, 6, 7, 1)
    draws = recipe(
        blur_probability=(1.0, 0.3), blur_sigma=(0.8, 0.8), solarize_probability=(0.0, 0.2)
    )
    views = make_views(crops, jax.random.key(2), draws, 4)
    views = np.asarray(views, np.float64).reshape(num, 4, 6, 7, 1)
    blurred = scipy.ndimage.gaussian_filter(
        crops / 255, 0.8, mode="nearest", radius=math.ceil(3 * 0.8), axes=(2, 3)
    )
    looks = {(False, False): crops / 255, (True, False): blurred}
    for is_blurred in (False, True):
        x = looks[is_blurred, False]
        looks[is_blurred, True] = np.where(x < 0.5, x, 1 - x)
    counts = {}
    for look, expected in looks.items():
        counts[look] = (np.abs(views - expected).max((2, 3, 4)) < 1e-5).sum(axis=0)  # [V]
    np.testing.assert_array_equal(sum(counts.values()), [num] * 4)
    for view in (0, 2):
        assert counts[True, False][view] == num
    for view in (1, 3):
        expected = [num * b * s for b, s in [(0.7, 0.8), (0.3, 0.8), (0.7, 0.2), (0.3, 0.2)]]
        seen = [counts[look][view] for look in looks]
        assert scipy.stats.chisquare(seen, expected).pvalue > 0.01
