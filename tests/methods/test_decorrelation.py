"""Barlow Twins' and VICReg's loss equal loops over channels and images."""

import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods.decorrelation import barlow_twins_loss, standardize, vicreg_loss
from tests.methods.loops import fresh, loss_and_gradient

WEIGHTS = {"invariance_weight": 25.0, "variance_weight": 7.0, "covariance_weight": 1.5}


def barlow_loop(x, y, other, weight):
    """The diagonal follows the target y, and the rest the negatives."""
    total = 0.0
    for i in range(x.shape[1]):
        for j in range(y.shape[1]):
            target = y if i == j else other
            a, b = x[:, i] - x[:, i].mean(), target[:, j] - target[:, j].mean()
            c = np.mean(a * b) / np.sqrt(np.mean(a * a) * np.mean(b * b))
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


@pytest.mark.parametrize("branches", ["shared", "two", "three"])
def test_barlow_twins_equals_a_loop(branches):
    (p, z), (negatives, _) = fresh(0), fresh(9)
    others = {"z_negative": negatives} if branches == "three" else {}
    t = p if branches == "shared" else z
    other = negatives if others else t
    value, _, _ = loss_and_gradient(
        barlow_twins_loss, p, t if t is z else None, others=others, off_diagonal_weight=0.2
    )
    expected = [barlow_loop(p[v], t[1 - v], other[1 - v], 0.2) for v in range(2)]
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-10)


@pytest.mark.parametrize("batch_size", [37, 64, 100])
def test_constant_columns_become_0_although_their_mean_is_rounded(batch_size):
    constants = np.random.default_rng(batch_size).normal(size=200).astype(np.float32)
    x = jnp.broadcast_to(constants, (batch_size, 200))
    np.testing.assert_array_equal(standardize(x), 0)
    small = 1e-4 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    np.testing.assert_allclose(np.std(standardize(x + small), axis=0), 1, atol=1e-4)


def test_barlow_twins_of_a_constant_channel_is_finite():
    p, _ = fresh(1)
    p[:, :, 2] = 0.1
    value, gradient, _ = loss_and_gradient(barlow_twins_loss, p, off_diagonal_weight=0.2)
    assert value >= 1 and np.isfinite(gradient).all()


@pytest.mark.parametrize("shared", [True, False])
def test_vicreg_equals_a_loop(shared):
    p, z = fresh(2)
    p = p * np.array([0.1, 1.0, 3.0, 0.5, 0.01])  # channels on both sides of the hinge
    value, _, (_, terms) = loss_and_gradient(vicreg_loss, p, None if shared else z, **WEIGHTS)
    t = p if shared else z
    invariance = (np.mean((p[0] - t[1]) ** 2) + np.mean((p[1] - t[0]) ** 2)) / 2
    variance = covariance = 0.0
    for x in p:
        for i in range(5):
            std = np.sqrt(np.var(x[:, i], ddof=1) + 1e-4)
            variance += max(0.0, 1 - std) / 5 / 2
            for j in range(5):
                a, b = x[:, i] - x[:, i].mean(), x[:, j] - x[:, j].mean()
                covariance += (i != j) * (np.sum(a * b) / 6) ** 2 / 5
    found = [terms[name] for name in ("invariance", "variance", "covariance")]
    np.testing.assert_allclose(found, [invariance, variance, covariance], rtol=1e-10)
    np.testing.assert_allclose(value, 25 * invariance + 7 * variance + 1.5 * covariance, rtol=1e-10)
