"""VISReg's loss and gradient equal loops over images, channels and directions."""

import numpy as np
import pytest

from gsg_jax.methods.lejepa import lejepa_loss
from gsg_jax.methods.visreg import visreg_loss
from tests.methods.loops import fresh, loss_and_gradient, normal_quantiles
from tests.methods.test_lejepa import OPTIONS, directions_of, invariance_loop


def spread_loop(p, directions):
    """Scale, shape and centre, and the gradient of their sum."""
    (num_views, num_images, width), gradient = p.shape, np.zeros_like(p)
    scale = shape = centre = 0.0
    for v, z in enumerate(p):
        mean, sigma = np.mean(z, axis=0), np.std(z, axis=0)
        for d in range(width):
            scale += (1 - sigma[d]) ** 2 / width / num_views
            centre += mean[d] ** 2 / width / num_views
            for n in range(num_images):
                of_sigma = (z[n, d] - mean[d]) / sigma[d] / num_images
                gradient[v, n, d] += 2 * (sigma[d] - 1) * of_sigma / width / num_views
                gradient[v, n, d] += 2 * mean[d] / num_images / width / num_views
        rows, of_rows = (z - mean) / (sigma + 1e-4), np.zeros_like(z)
        for a in directions.T:
            ranks = np.argsort([row @ a for row in rows])
            for n, quantile in zip(ranks, normal_quantiles(num_images), strict=True):
                share = 1 / num_images / directions.shape[1] / num_views
                shape += share * (rows[n] @ a - quantile) ** 2
                of_rows[n] += share * 2 * (rows[n] @ a - quantile) * a
        gradient[v] += (of_rows - np.mean(of_rows, axis=0)) / (sigma + 1e-4)
    return (scale, shape, centre), gradient


@pytest.mark.parametrize("collapse", [1.0, 1e-3])
@pytest.mark.parametrize("branches", ["shared", "local"])
def test_loss_and_gradient_equal_loops(branches, collapse):
    p, z = fresh(5, collapse=collapse)
    if branches == "local":
        p = np.concatenate([p, fresh(6, collapse=collapse)[0], 1.1 * p[:1]])
    z = p if branches == "shared" else z
    found, gradient, (_, terms) = loss_and_gradient(
        visreg_loss, p, None if branches == "shared" else z, **OPTIONS
    )
    near, into_near = invariance_loop(p, z, branches == "shared")
    spread, into_spread = spread_loop(p, directions_of(0, p.shape[-1]))
    names = ("invariance", "scale", "shape", "centre")
    np.testing.assert_allclose([terms[name] for name in names], [near, *spread], rtol=1e-9)
    np.testing.assert_allclose(found, 0.7 * near + 0.3 * sum(spread), rtol=1e-9)
    expected = 0.7 * into_near + 0.3 * into_spread
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_near_a_collapse_its_gradient_grows_and_that_of_lejepa_vanishes():
    lengths = {}
    rows = np.random.default_rng(7).normal(size=(1, 7, 5)).repeat(2, axis=0)  # views agree
    for loss in (lejepa_loss, visreg_loss):
        for size in (1e-1, 1e-2):
            _, gradient, _ = loss_and_gradient(loss, size * rows, **OPTIONS)
            lengths[loss, size] = np.linalg.norm(gradient - gradient.mean(axis=1, keepdims=True))
    assert lengths[lejepa_loss, 1e-2] < 0.11 * lengths[lejepa_loss, 1e-1]
    assert lengths[visreg_loss, 1e-2] > 3 * lengths[visreg_loss, 1e-1]


def test_of_a_constant_value_and_gradient_are_finite():
    value, gradient, _ = loss_and_gradient(visreg_loss, np.ones((2, 7, 5)), **OPTIONS)
    assert np.isfinite(value) and np.isfinite(gradient).all()
