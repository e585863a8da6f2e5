"""The collapse figures have their closed forms, and fall when representations collapse."""

import jax.numpy as jnp
import numpy as np

from gsg_jax.methods.diagnostics import MAX_ROWS, effective_rank, projection_std


def test_effective_rank_equals_the_definition_in_float64():
    rng = np.random.default_rng(0)
    for rows, columns in [(17, 40), (60, 9), (33, 33)]:
        x = rng.normal(size=(rows, columns)) * rng.uniform(0.01, 3, size=columns) + 5
        singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
        shares = singular / singular.sum()
        shares = shares[shares > 1e-9]
        expected = np.exp(-(shares * np.log(shares)).sum())
        np.testing.assert_allclose(effective_rank(jnp.asarray(x, jnp.float32)), expected, rtol=0.01)


def test_effective_rank_is_one_on_a_line_and_zero_at_a_point():
    line = np.outer(np.arange(20.0), np.ones(6))
    np.testing.assert_allclose(effective_rank(jnp.asarray(line, jnp.float32)), 1, atol=0.01)
    assert effective_rank(jnp.full((20, 6), 3.0)) == 0


def test_effective_rank_looks_at_the_first_rows_alone():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(MAX_ROWS + 50, 5)).astype(np.float32)
    np.testing.assert_array_equal(effective_rank(x), effective_rank(x[:MAX_ROWS]))


def test_projection_std_equals_the_definition_and_is_near_one_on_the_sphere():
    z = np.random.default_rng(2).normal(size=(2, 400, 30))
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    expected = np.mean([view.std(axis=0).mean() for view in unit]) * np.sqrt(30)
    figure = projection_std(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(figure, expected, rtol=1e-5)
    np.testing.assert_allclose(figure, 1, atol=0.02)
    assert projection_std(jnp.ones((2, 9, 4))) < 1e-6
