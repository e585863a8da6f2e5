"""Guided stop-gradient equals the reference implementation's figures and a plain loop."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods.guided import (
    DISTANCES,
    GUIDES,
    PAIRS,
    closest_pairs,
    draw_pairs,
    guided_loss,
    source_views,
)
from gsg_jax.methods.method import CutMix
from tests.methods.loops import loss_and_gradient, unit

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
VECTORS = ["gsg_random", "gsg_near_collapse", "gsg_ties", "gsg_zeros"]


def stacked(vectors, prefix, undo):
    """Rows of the four views; the second pair's are put where the drawn permutation takes them."""
    views = [vectors[f"{prefix}{pair}"] for pair in PAIRS]
    return np.stack([*views[:2], views[2][undo], views[3][undo]])


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_loss_gradient_and_choice_equal_the_reference_vectors(name, precision):
    vectors = np.load(REFERENCE / f"{name}.npz")
    dtype, tolerance = (np.float32, 1e-5) if precision == "f32" else (np.float64, 1e-10)
    with jax.enable_x64(precision == "f64"):  # a permutation's draw depends on it
        undo = np.argsort(np.asarray(jax.random.permutation(jax.random.key(3), 16)))
    p, z = stacked(vectors, "p", undo), stacked(vectors, "z", undo)
    loss, grads, (_, metrics) = loss_and_gradient(guided_loss, p, z, key=3, dtype=dtype)
    permuted = np.argsort(undo)
    grads = [grads[0], grads[1], grads[2][permuted], grads[3][permuted]]

    np.testing.assert_allclose(loss, vectors[f"{precision}_loss"], rtol=tolerance)
    for ours, column in zip(grads, ["p11", "p12", "p21", "p22"], strict=True):
        theirs = vectors[f"{precision}_grad_{column}"]
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale)
        np.testing.assert_array_equal((ours == 0).all(axis=1), (theirs == 0).all(axis=1))
    shares = np.bincount(vectors[f"{precision}_argmin"], minlength=4) / 16
    np.testing.assert_allclose([metrics[f"closest_{pair}"] for pair in PAIRS], shares)


def plain_loss(p, z, image, reference, mix=None, take=min, seen_as=np.asarray):
    """Mean guided loss by loops in float64; also which source views each pair took.

    `take` chooses one of the four view pairs by its key, the distance of `seen_as` projections.
    """
    p, z = np.asarray(p, np.float64), np.asarray(z, np.float64)
    last, local = len(z) - 2, range(len(z), len(p))
    losses, sources = [], []

    def pull(view, target, n):
        """D of a view of image n against its target view, and by the share its partner's."""
        own = minus_cosine(p[view, n], z[target, n])
        if mix is None:
            return own
        partners = minus_cosine(p[view, n], z[target, mix.partner[n]])
        return (1 - mix.share) * own + mix.share * partners

    for i, r in zip(image, reference, strict=True):
        pairs = [(a, b) for a in (0, 1) for b in (0, 1)]
        seen = seen_as(z)
        a, b = take(
            pairs, key=lambda pair: np.linalg.norm(seen[pair[0], i] - seen[last + pair[1], r])
        )
        for n, first, source in ((i, 0, a), (r, last, b)):
            views = [first + source, *local]
            losses.append(np.mean([pull(view, first + 1 - source, n) for view in views]))
        sources += [(a, i), (last + b, r)]
    return np.mean(losses), sources


def minus_cosine(x, y):
    return -x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def drawn_pairs(z, key, pairing):
    """Indices of the images and of their references."""
    everyone = np.arange(z.shape[1])
    pairs = draw_pairs(z, key, pairing)
    return [everyone[x if isinstance(x, slice) else np.asarray(x)] for x in pairs]


@pytest.mark.parametrize(
    ("pairing", "num_views", "batch_size"),
    [("permutation", 4, 13), ("roll", 2, 7), ("halves", 2, 10), ("nearest", 2, 9)],
)
def test_every_pairing_equals_a_plain_loop(pairing, num_views, batch_size):
    rng = np.random.default_rng(batch_size)
    p = rng.normal(size=(num_views, batch_size, 5)).astype(np.float32)
    z = rng.normal(size=(num_views, batch_size, 5)).astype(np.float32)
    image, reference = drawn_pairs(jnp.asarray(z), jax.random.key(11), pairing)
    loss, grads, _ = loss_and_gradient(guided_loss, p, z, key=11, dtype=np.float32, pairing=pairing)
    expected, sources = plain_loss(p, z, image, reference)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    touched = {tuple(map(int, index)) for index in np.argwhere(np.abs(grads).sum(axis=-1) > 0)}
    assert touched == set(sources)


@pytest.mark.parametrize("distances", DISTANCES)
@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_and_distance_equals_a_plain_loop(guide, distances):
    rng = np.random.default_rng(4)
    p, z = rng.normal(size=(2, 4, 13, 3))
    z *= rng.uniform(0.2, 5, size=(4, 13, 1))  # else the two distances agree
    options = {"guide": guide, "distances": distances}
    loss, grads, _ = loss_and_gradient(guided_loss, p, z, key=11, **options)
    with jax.enable_x64(True):
        key = jax.random.key(11)
        image, reference = drawn_pairs(jnp.asarray(z), key, "permutation")
        drawn = closest_pairs(jnp.asarray(z), key, "permutation", guide, distances)
        drawn = list(zip(np.asarray(drawn.a), np.asarray(drawn.b), strict=True))
    random_pairs = iter(drawn)
    take = {"closest": min, "farthest": max, "random": lambda pairs, key: next(random_pairs)}
    seen_as = {"raw": np.asarray, "normalised": unit}
    expected, sources = plain_loss(
        p, z, image, reference, take=take[guide], seen_as=seen_as[distances]
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-10)
    touched = {tuple(map(int, index)) for index in np.argwhere(np.abs(grads).sum(axis=-1) > 0)}
    assert touched == {tuple(map(int, source)) for source in sources}


def test_the_guides_and_distances_differ_and_random_takes_every_pair_equally_often():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(4, 2000, 3)) * rng.uniform(0.2, 5, size=(4, 2000, 1))
    found = {
        (guide, distances): closest_pairs(
            jnp.asarray(z, jnp.float32), jax.random.key(1), "permutation", guide, distances
        )
        for guide in GUIDES
        for distances in DISTANCES
    }
    codes = {name: np.asarray(2 * pairs.a + pairs.b) for name, pairs in found.items()}
    np.testing.assert_array_equal(codes["random", "raw"], codes["random", "normalised"])
    shares = np.bincount(codes["random", "raw"], minlength=4) / 2000
    assert np.abs(shares - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)
    assert np.mean(codes["closest", "raw"] == codes["closest", "normalised"]) < 0.8
    assert not np.any(codes["closest", "raw"] == codes["farthest", "raw"])
    again = closest_pairs(jnp.asarray(z, jnp.float32), jax.random.key(2), "roll", "random")
    assert np.mean(codes["random", "raw"] == np.asarray(2 * again.a + again.b)) < 0.5


@pytest.mark.parametrize(
    ("pairing", "num_global", "batch_size"), [("permutation", 4, 11), ("roll", 2, 6)]
)
@pytest.mark.parametrize(("num_local", "share"), [(3, None), (0, 0.4), (3, 0.4)])
def test_local_views_and_patches_follow_the_sources_target(
    pairing, num_global, batch_size, num_local, share
):
    rng = np.random.default_rng(batch_size)
    p = rng.normal(size=(num_global + num_local, batch_size, 5))
    z = rng.normal(size=(num_global, batch_size, 5))
    mix = None if share is None else CutMix(rng.permutation(batch_size), share)
    loss, _, (_, metrics) = loss_and_gradient(
        guided_loss, p, z, key=11, others={"mix": mix}, pairing=pairing
    )
    with jax.enable_x64(True):
        image, reference = drawn_pairs(jnp.asarray(z), jax.random.key(11), pairing)
    expected, _ = plain_loss(p, z, image, reference, mix)
    np.testing.assert_allclose([loss, metrics["attraction"]], expected, rtol=1e-10)


def test_the_nearest_image_is_found_far_from_the_origin_and_is_never_itself():
    rng = np.random.default_rng(7)
    z = 1000 + rng.normal(size=(2, 20, 8))
    image, reference = drawn_pairs(jnp.asarray(z, jnp.float32), jax.random.key(0), "nearest")
    expected = []
    for i in range(20):
        distances = [
            min(np.linalg.norm(z[a, i] - z[b, r]) for a in (0, 1) for b in (0, 1))
            if r != i
            else np.inf
            for r in range(20)
        ]
        expected.append(int(np.argmin(distances)))
    np.testing.assert_array_equal(image, np.arange(20))
    np.testing.assert_array_equal(reference, expected)


def test_the_permutation_is_drawn_anew_from_each_key():
    z = jnp.zeros((4, 50, 2))
    _, first = draw_pairs(z, jax.random.key(0), "permutation")
    _, second = draw_pairs(z, jax.random.key(1), "permutation")
    np.testing.assert_array_equal(np.sort(first), np.arange(50))
    assert not np.array_equal(first, second)


def test_rolled_references_are_the_next_images_and_halves_the_other_half():
    z = jnp.zeros((2, 6, 3))
    image, reference = draw_pairs(z, jax.random.key(0), "roll")
    np.testing.assert_array_equal(reference, [1, 2, 3, 4, 5, 0])
    np.testing.assert_array_equal(np.arange(6)[image], np.arange(6))
    image, reference = draw_pairs(z, jax.random.key(0), "halves")
    np.testing.assert_array_equal(np.arange(6)[image], [0, 1, 2])
    np.testing.assert_array_equal(np.arange(6)[reference], [3, 4, 5])


@pytest.mark.parametrize(
    ("pairing", "num_views", "guide"),
    [("permutation", 4, "closest"), ("halves", 2, "closest"), ("permutation", 4, "random")],
)
def test_source_views_are_those_that_get_gradient_and_give_the_same_loss(pairing, num_views, guide):
    rng = np.random.default_rng(9)
    p, z = np.float32(rng.normal(size=(2, num_views, 10, 6)))
    choice = {"pairing": pairing, "guide": guide}
    of = functools.partial(loss_and_gradient, guided_loss, z=z, key=2, dtype=np.float32, **choice)
    loss, grads, _ = of(p)
    touched = np.abs(grads).sum(axis=-1) > 0  # [V, B]
    for pair in range(0, num_views, 2):  # exactly one view of each pair of views gets gradient
        np.testing.assert_array_equal(touched[pair : pair + 2].sum(axis=0), np.ones(10))
    sources = np.asarray(source_views(jnp.asarray(z), jax.random.key(2), **choice))  # [S, B]
    expected = [np.flatnonzero(touched[:, image]) for image in range(10)]
    np.testing.assert_array_equal(sources.T, expected)

    of_selected, _, (_, metrics) = of(p[sources, np.arange(10)], others={"sources": sources})
    np.testing.assert_allclose(of_selected, loss, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sum(metrics[f"closest_{pair}"] for pair in PAIRS), 1, rtol=1e-6)
