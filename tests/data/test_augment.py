"""Views of a batch: what is drawn for each, in which order, and what they depend on."""

import itertools
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.stats

from gsg_jax.data import augment
from tests.data.test_boxes import ASPECT
from tests.data.test_colours import floats, keys, plain_gray, recipe, uint8

make_views = jax.jit(augment.make_views, static_argnums=(2, 3))


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


def test_views_depend_on_the_key_and_on_their_own_image_alone():
    changed = PHOTOS.copy()
    changed[3] = 255 - changed[3]
    views = make_views(changed, jax.random.key(0), BYOL, 2)
    assert views.shape == (16, 8, 8, 3) and views.dtype == jnp.float32
    differs = np.abs(views.reshape(8, 2, 8, 8, 3) - byol_views()).max((2, 3, 4))
    assert (differs[3] > 0.1).all() and not np.delete(differs, 3, axis=0).any()
    assert (np.abs(byol_views(1) - byol_views()).max((2, 3, 4)) > 0.1).all()


def test_the_views_of_an_image_differ_from_one_another_and_from_other_images():
    alike = np.broadcast_to(PHOTOS[:1], PHOTOS.shape)  # only the draws can differ
    views = np.asarray(make_views(alike, jax.random.key(0), BYOL, 2))
    for a, b in itertools.combinations(views, 2):
        assert np.abs(a - b).max() > 0.05


def test_views_of_images_and_of_host_crops_stand_images_first():
    host_crops = uint8(8, 4, 3, 8, 8, 3)
    for images in (host_crops[:, 0], host_crops):
        views = make_views(images, jax.random.key(0), recipe(mean=(0.25,), std=(0.5,)), 3)
        whole = np.broadcast_to(images.reshape(4, -1, 8, 8, 3), host_crops.shape)
        expected = (whole.reshape(12, 8, 8, 3) / 255 - 0.25) / 0.5
        np.testing.assert_allclose(views, expected, atol=1e-5)


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
