"""Colours and blur against Pillow, SciPy, colorsys and plain NumPy."""

import colorsys
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps

from gsg_jax.data import augment, colours
from gsg_jax.data.augment import ViewRecipe

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


LUMA = np.array([0.299, 0.587, 0.114])


def plain_gray(x):
    return x if x.shape[-1] == 1 else np.repeat((x @ LUMA)[..., None], 3, axis=-1)


def plain_blend(x, other, factor):
    return np.clip(factor * x + (1 - factor) * other, 0, 1)


def plain_hue(x, turn):
    if x.shape[-1] == 1:
        return x
    h, s, v = np.vectorize(colorsys.rgb_to_hsv)(*np.moveaxis(x, -1, 0))
    turned = (h + np.asarray(turn)[..., 0]) % 1
    return np.stack(np.vectorize(colorsys.hsv_to_rgb)(turned, s, v), axis=-1)


PLAIN_OPERATIONS = {
    "brightness": lambda x, factor: plain_blend(x, 0.0, factor),
    "contrast": lambda x, factor: plain_blend(
        x, plain_gray(x).mean((-3, -2, -1), keepdims=True), factor
    ),
    "saturation": lambda x, factor: plain_blend(x, plain_gray(x), factor),
    "hue": plain_hue,
}


# Pillow cuts the blend off to whole levels (1), and rounds the gray it blends with (0.5), for
# contrast the mean of a rounded gray too (1); here nothing is rounded.
@pytest.mark.parametrize("shape", [(31, 45, 3), (13, 8, 1)])
@pytest.mark.parametrize(
    ("name", "enhancer", "rounding"),
    [
        ("brightness", ImageEnhance.Brightness, 0),
        ("contrast", ImageEnhance.Contrast, 1),
        ("saturation", ImageEnhance.Color, 0.5),
    ],
)
def test_blends_are_pillows_enhancers(name, enhancer, rounding, shape):
    pixels = uint8(0, *shape)
    image = pixels.astype(np.float32) / 255
    factors = np.array([0, 0.3, 0.8, 1, 1.4, 3], np.float32)
    number = np.array([list(PLAIN_OPERATIONS).index(name)])
    adjust = jax.jit(jax.vmap(partial(colours.jitter_in_order, image, number)))
    pillow = enhancer(Image.fromarray(pixels[..., 0] if shape[-1] == 1 else pixels))
    for factor, ours in zip(factors, adjust(np.stack([factors] * 3, axis=1)), strict=True):
        plain = PLAIN_OPERATIONS[name](image.astype(np.float64), factor)
        np.testing.assert_allclose(ours, plain, atol=2e-6)
        theirs = np.asarray(pillow.enhance(float(factor)), np.float32).reshape(shape) / 255
        levels = 1 + rounding * abs(1 - factor)
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
    operations = list(PLAIN_OPERATIONS.values())
    for row, order in enumerate(orders):
        image = np.broadcast_to(picture, views.shape)
        for operation in order:
            image = operations[operation](image, amounts[operation][:, None, None, None])
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


def test_jitter_without_a_hue_and_of_one_channel_takes_its_blends_in_all_orders():
    picture, _, views, amounts = jitter(3)
    found, clear = orders_found(picture, views, amounts[:3])
    assert set(found[clear]) == set(range(6))
    picture, views, hueless, amounts = jitter(1)
    found, clear = orders_found(picture, views, amounts)
    assert set(found[clear]) == {0, 1}
    np.testing.assert_array_equal(views, hueless)


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
