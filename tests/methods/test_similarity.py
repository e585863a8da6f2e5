"""Norms, cosines and distances, and their gradients where vectors vanish or collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods import similarity

FLOOR = 1e-8


def vectors(seed, shape=(5, 3, 17), scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def cosine(x, y):
    return similarity.cosine_to_unit(x, similarity.normalize(y))


def plain_cosine(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    dot, lengths = 0.0, [0.0, 0.0]
    for a, b in zip(np.moveaxis(x, -1, 0), np.moveaxis(y, -1, 0), strict=True):
        dot, lengths = dot + a * b, [lengths[0] + a * a, lengths[1] + b * b]
    return dot / (np.maximum(np.sqrt(lengths[0]), FLOOR) * np.maximum(np.sqrt(lengths[1]), FLOOR))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_cosine_norm_and_distance_equal_float64(scale):
    x, y = vectors(0, scale=scale), vectors(1, scale=scale)
    lengths = np.sqrt(np.sum(x.astype(np.float64) ** 2, axis=-1))
    apart = np.sqrt(np.sum((x.astype(np.float64) - y) ** 2, axis=-1))
    np.testing.assert_allclose(similarity.norm(x), lengths, rtol=1e-6)
    np.testing.assert_allclose(similarity.distance(x, y), apart, rtol=1e-6)
    np.testing.assert_allclose(similarity.normalize(x), x / lengths[..., None], atol=1e-6)
    np.testing.assert_allclose(cosine(x, y), plain_cosine(x, y), atol=1e-6)


def test_each_norm_is_clamped_on_its_own():
    # Clamping the product of the norms instead would give 0.5 / 1e3 here, not 0.5.
    short = jnp.array([0.5e-8, 0.0])
    long = jnp.array([1e3, 0.0])
    np.testing.assert_allclose(similarity.normalize(short), [0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(cosine(short, long), 0.5, rtol=1e-6)
    np.testing.assert_allclose(cosine(long, short), 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "distance"])
def test_gradients_equal_float64_finite_differences(name):
    x, y, weights = vectors(2, (3, 5)), vectors(3, (3, 5)), vectors(4, (3,))

    def plain(x):
        x = x.astype(np.float64)
        values = plain_cosine(x, y) if name == "cosine" else np.linalg.norm(x - y, axis=-1)
        return np.sum(weights * values)

    expected = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-5
        expected[index] = (plain(x + step) - plain(x - step)) / 2e-5
    function = cosine if name == "cosine" else similarity.distance
    gradient = jax.grad(lambda x: jnp.sum(weights * function(x, y)))(jnp.asarray(x))
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


def test_the_zero_vector_has_norm_zero_cosine_zero_and_finite_gradients():
    zero, other = jnp.zeros(4), jnp.array([0.0, 3.0, 0.0, 4.0])
    assert similarity.norm(zero) == 0
    assert similarity.distance(other, other) == 0
    assert cosine(zero, other) == 0
    np.testing.assert_array_equal(similarity.normalize(zero), np.zeros(4))
    np.testing.assert_array_equal(jax.grad(similarity.norm)(zero), np.zeros(4))
    np.testing.assert_array_equal(jax.grad(similarity.distance)(other, other), np.zeros(4))
    for_zero, for_other = jax.grad(cosine, (0, 1))(zero, other)
    # Below the floor normalize is x / floor, whose slope is 1 / floor.
    np.testing.assert_allclose(for_zero, np.array([0, 0.6, 0, 0.8]) / FLOOR, rtol=1e-6)
    np.testing.assert_array_equal(for_other, np.zeros(4))


def test_distance_near_collapse_keeps_the_order_that_the_expanded_form_loses():
    # Projections of norm 11 that have come within 2e-4 of one another.
    centre = vectors(5, (1, 128))
    x, y = centre + vectors(6, (40, 128), 1e-5), centre + vectors(7, (40, 128), 1e-5)
    true = np.sqrt(np.sum((x.astype(np.float64) - y) ** 2, axis=-1))
    direct = similarity.distance(x, y)
    np.testing.assert_allclose(direct, true, rtol=1e-6)
    assert np.argmin(direct) == np.argmin(true)

    squares = jnp.sum(x * x, -1) + jnp.sum(y * y, -1) - 2 * jnp.sum(x * y, -1)
    expanded = jnp.sqrt(jnp.maximum(squares, 0))
    assert np.median(np.abs(expanded - true) / true) > 0.1
