"""SimDINO's loss and gradient equal loops over pairs of views, images and channels."""

import numpy as np
import pytest

from gsg_jax.methods.method import CutMix
from gsg_jax.methods.simdino import simdino_loss
from tests.methods.loops import fresh, loss_and_gradient, unit


def simdino_loop(p, z, epsilon, partner, share):
    """Compression, expansion, and the gradient of the loss with respect to p."""
    (num_views, num_images, width), num_global = p.shape, len(z)
    u, t = unit(p), unit(z)
    of_u = np.zeros_like(p)
    pairs = [(v, g) for v in range(num_views) for g in range(num_global) if g != v]
    compression = expansion = 0.0
    for v, g in pairs:
        for n in range(num_images):
            target = (1 - share) * t[g, n] + share * t[g, partner[n]]
            compression += u[v, n] @ target / len(pairs) / num_images
            of_u[v, n] -= target / len(pairs) / num_images
    gamma = (width + num_images) / (width * num_images)
    scale = width / (num_images * epsilon)
    for v in range(num_global):
        f = (u[v] + t[v]) / 2
        matrix = np.eye(width) + scale * sum(np.outer(row, row) for row in f)
        expansion += gamma * np.sum(np.log(np.linalg.eigvalsh(matrix))) / 2 / num_global
        # d 1/2 log det (I + s F' F) / dF = s F (I + s F' F)^-1, and F has half of u
        of_u[v] -= gamma / num_global * scale * f @ np.linalg.inv(matrix) / 2
    inward = np.sum(of_u * u, axis=-1, keepdims=True) * u
    return compression, expansion, (of_u - inward) / np.linalg.norm(p, axis=-1, keepdims=True)


@pytest.mark.parametrize("collapse", [1.0, 1e-3])
@pytest.mark.parametrize(
    ("num_images", "num_local", "share"), [(7, 0, 0.0), (7, 3, 0.0), (4, 0, 0.3)]
)
def test_loss_and_gradient_equal_loops(num_images, num_local, share, collapse):
    p, z = fresh(8, num_images=num_images, collapse=collapse)
    local = fresh(9, num_images=num_images, collapse=collapse)
    p = np.concatenate([p, np.concatenate(local)[:num_local]])
    partner = np.roll(np.arange(num_images), 2)
    others = {"mix": CutMix(partner, share)} if share else {}
    found, gradient, (_, terms) = loss_and_gradient(
        simdino_loss, p, z, others=others, coding_epsilon=0.05
    )
    compression, expansion, expected = simdino_loop(p, z, 0.05, partner, share)
    np.testing.assert_allclose(terms["compression"], compression, rtol=1e-9)
    np.testing.assert_allclose(terms["expansion"], expansion, rtol=1e-9)
    np.testing.assert_allclose(found, -compression - expansion, rtol=1e-9)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_equal_rows_have_the_least_expansion():
    p, z = fresh(10)
    values = [
        loss_and_gradient(simdino_loss, x, x, coding_epsilon=0.05)[2][1]["expansion"]
        for x in (p, 0 * p + p[:1, :1])
    ]
    assert values[0] > 1.5 * values[1] > 0
