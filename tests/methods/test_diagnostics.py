"""Collapse figures have their closed forms; the gradient's parts equal loops and UniGrad's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.contrastive import nt_xent_loss
from gsg_jax.methods.diagnostics import (
    GRADIENT_FIGURES,
    MAX_ROWS,
    channel_correlation,
    effective_rank,
    gradient_figures,
    projection_std,
)
from gsg_jax.methods.method import Outputs
from gsg_jax.methods.unified import surrogate_loss
from tests.methods.loops import fresh, unit

KEY = jax.random.key(0)


def test_effective_rank_equals_the_definition_in_float64():
    rng = np.random.default_rng(0)
    for rows, columns in [(17, 40), (60, 9), (33, 33)]:
        x = rng.normal(size=(rows, columns)) * rng.uniform(0.01, 3, size=columns) + 5
        singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
        shares = singular / singular.sum()
        shares = shares[shares > 1e-9]
        expected = np.exp(-(shares * np.log(shares)).sum())
        np.testing.assert_allclose(effective_rank(jnp.asarray(x, jnp.float32)), expected, rtol=0.01)
    for value in (3.0, 0.1):  # 100 times 0.1 is not exact, nor is its mean
        assert effective_rank(jnp.full((100, 6), value)) == 0
    x = rng.normal(size=(MAX_ROWS + 50, 5)).astype(np.float32)  # it looks at the first rows alone
    np.testing.assert_array_equal(effective_rank(x), effective_rank(x[:MAX_ROWS]))


@pytest.mark.parametrize("shape", [(256, 64), (128, 512)])
@pytest.mark.parametrize("rank", [1, 2])
def test_directions_that_are_only_rounding_do_not_count(shape, rank):
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1])) + 1
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[:rank]
    shares = singular / singular.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    np.testing.assert_allclose(effective_rank(jnp.asarray(x, jnp.float32)), expected, rtol=1e-3)


def test_projection_std_equals_the_definition_and_is_near_one_on_the_sphere():
    z = np.random.default_rng(2).normal(size=(2, 400, 30))
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    expected = np.mean([view.std(axis=0).mean() for view in unit]) * np.sqrt(30)
    figure = projection_std(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(figure, expected, rtol=1e-5)
    np.testing.assert_allclose(figure, 1, atol=0.02)
    assert projection_std(jnp.ones((2, 9, 4))) < 1e-6


def figures_of(loss, z, outputs_of, memory=None, **options):
    """The figures, float64."""
    with jax.enable_x64(True):

        def of_options(outputs, memory, key):
            return loss(outputs, memory, key, **options)

        memory = jax.tree.map(jnp.asarray, memory or {})
        figures = gradient_figures(of_options, outputs_of, jnp.asarray(z), memory, KEY)
    return jax.device_get(figures)


def against(target):
    """Outputs of online projections and a target branch of its own, without a predictor."""
    return lambda z: Outputs(h=z, z=z, p=z, z_target=jnp.asarray(target))


def across(u, gradient):
    return gradient - np.sum(gradient * u, axis=-1, keepdims=True) * u


def mean_norm(x):
    return np.mean(np.linalg.norm(x, axis=-1))


@pytest.mark.parametrize("balance", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("num_views", [2, 5])
def test_unigrads_parts_are_the_two_of_its_definition(balance, num_views):
    z = np.random.default_rng(1).normal(size=(num_views, 7, 5))
    target = fresh(2)[0]
    memory = {"correlation": np.zeros((5, 5)), "is_set": np.array(False)}
    settings = {"temperature": 0.2, "eigenvalue_floor": 0.3, "correlation_decay": 0.9}
    figures = figures_of(
        surrogate_loss, z, against(target), memory, form="unigrad", balance=balance, **settings
    )
    u, t = unit(z), unit(target)
    rows = t.reshape(-1, 5)
    followed = np.stack([t[1 - v] if v < 2 else (t[0] + t[1]) / 2 for v in range(num_views)])
    positive = across(u, -followed)
    negative = across(u, balance * u @ (rows.T @ rows / len(rows)))
    np.testing.assert_allclose(figures["positive_gradient"], mean_norm(positive), rtol=1e-10)
    np.testing.assert_allclose(figures["negative_gradient"], mean_norm(negative), rtol=1e-10)
    ratio = mean_norm(negative) / mean_norm(positive)
    np.testing.assert_allclose(figures["gradient_balance"], ratio, rtol=1e-10)
    cosine = np.mean(np.sum(unit(positive) * unit(negative), axis=-1)) if balance else 0
    np.testing.assert_allclose(figures["gradient_cosine"], cosine, atol=1e-10)
    assert set(figures) == set(GRADIENT_FIGURES)


def test_similarities_by_a_loop():
    z, target = fresh(3)
    figures = figures_of(nt_xent_loss, z, against(target), temperature=0.2)
    u, t = unit(z[0]), unit(target[1])
    alike = [u[n] @ t[n] for n in range(7)]
    different = [u[n] @ t[m] for n in range(7) for m in range(7) if n != m]
    np.testing.assert_allclose(figures["positive_similarity"], np.mean(alike), rtol=1e-10)
    np.testing.assert_allclose(figures["negative_similarity"], np.mean(different), rtol=1e-10)


def test_the_sibling_of_a_selected_source_is_the_view_that_it_is_not():
    z, target = fresh(3)
    sources = np.random.default_rng(8).integers(0, 2, (1, 7))

    def selected(z):
        return against(target)(z)._replace(sources=jnp.asarray(sources))

    def loss(outputs, memory, key):
        return jnp.sum(outputs.z), memory, {"attraction": jnp.sum(outputs.z)}

    figures = figures_of(loss, z[:1], selected)
    alike = [unit(z[0])[n] @ unit(target[1 - sources[0, n]])[n] for n in range(7)]
    np.testing.assert_allclose(figures["positive_similarity"], np.mean(alike), rtol=1e-10)


def test_without_a_predictor_nothing_pushes_and_with_one_something_does():
    z, target = fresh(4)
    weights = np.random.default_rng(5).normal(size=(5, 5))
    with_predictor = lambda z: Outputs(  # noqa: E731
        h=z, z=z, p=z @ jnp.asarray(weights), z_target=jnp.asarray(target)
    )
    alone = figures_of(asymmetric_loss, z, against(target))
    assert alone["positive_gradient"] > 0.1 and alone["negative_gradient"] < 1e-12
    figures = figures_of(asymmetric_loss, z, with_predictor)
    # By hand: p = W z, its norm taken for a constant in the positive part.
    p, length = z @ weights, np.linalg.norm(z, axis=-1, keepdims=True)
    norms = np.linalg.norm(p, axis=-1, keepdims=True)
    positive = -unit(target)[::-1] @ weights.T / norms * length
    along = np.sum(unit(p) * unit(target)[::-1], axis=-1, keepdims=True)
    negative = along * unit(p) @ weights.T / norms * length
    u = unit(z)
    expected = mean_norm(across(u, positive)), mean_norm(across(u, negative))
    ours = figures["positive_gradient"], figures["negative_gradient"]
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_the_figures_do_not_depend_on_the_length_of_the_projections():
    z, target = fresh(6)
    scale = np.random.default_rng(7).uniform(0.1, 10, size=(2, 7, 1))
    one = figures_of(nt_xent_loss, z, against(target), temperature=0.2)
    other = figures_of(nt_xent_loss, scale * z, against(target), temperature=0.2)
    for name in set(GRADIENT_FIGURES) - {"channel_correlation"}:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-9)


def test_the_correlation_of_channels_by_numpy():
    z = np.random.default_rng(8).normal(size=(9, 4)) @ np.random.default_rng(9).normal(size=(4, 4))
    correlation = np.corrcoef(z.T)
    off_diagonal = correlation[~np.eye(4, dtype=bool)]
    expected = np.sqrt(np.mean(off_diagonal**2))
    np.testing.assert_allclose(channel_correlation(jnp.asarray(z)), expected, rtol=1e-5)
    same = np.repeat(z[:, :1], 3, axis=1)
    np.testing.assert_allclose(channel_correlation(jnp.asarray(same)), 1, rtol=1e-5)
    assert float(channel_correlation(jnp.ones((6, 3)))) == 0
