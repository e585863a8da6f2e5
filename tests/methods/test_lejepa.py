"""LeJEPA's loss and gradient equal loops over images, directions and knots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods.lejepa import lejepa_loss, sigreg
from gsg_jax.methods.sketch import project
from tests.methods.loops import fresh, loss_and_gradient, normal_quantiles

OPTIONS = {"regularizer_weight": 0.3, "num_directions": 4}


def directions_of(key, width):
    """The unit columns on which rows are projected, [D, M]."""
    with jax.enable_x64(True):
        found = project(jnp.eye(width)[None], jax.random.key(key), OPTIONS["num_directions"])
    return np.asarray(found)[0]


def invariance_loop(p, z, shared):
    """Its value, and its gradient with respect to p."""
    value, gradient, size = 0.0, np.zeros_like(p), p.size
    for n in range(p.shape[1]):
        centre = sum(z[g, n] for g in range(len(z))) / len(z)
        for v in range(len(p)):
            value += np.sum((centre - p[v, n]) ** 2) / size
            gradient[v, n] -= 2 * (centre - p[v, n]) / size
            for g in range(len(z) if shared else 0):
                gradient[g, n] += 2 * (centre - p[v, n]) / size / len(z)
    return value, gradient


def sigreg_loop(p, directions):
    """Its mean over the views, and its gradient."""
    (num_views, num_images, _), value, gradient = p.shape, 0.0, np.zeros_like(p)
    for v in range(num_views):
        for a in directions.T:
            s = np.array([row @ a for row in p[v]])
            for j in range(17):
                t = 3 * j / 16
                phi = np.exp(-(t**2) / 2)
                weight = (3 / 16 if j in (0, 16) else 2 * 3 / 16) * phi
                weight *= num_images / num_views / directions.shape[1]
                cosine, sine = np.mean(np.cos(t * s)) - phi, np.mean(np.sin(t * s))
                value += weight * (cosine**2 + sine**2)
                for n in range(num_images):
                    turn = sine * np.cos(t * s[n]) - cosine * np.sin(t * s[n])
                    gradient[v, n] += weight * 2 * turn * t / num_images * a
    return value, gradient


@pytest.mark.parametrize("collapse", [1.0, 1e-3])
@pytest.mark.parametrize("branches", ["shared", "local"])
def test_loss_and_gradient_equal_loops(branches, collapse):
    p, z = fresh(3, collapse=collapse)
    if branches == "local":
        p = np.concatenate([p, fresh(4, collapse=collapse)[0], p[:1] + 0.1])
    z = p if branches == "shared" else z
    found, gradient, (_, terms) = loss_and_gradient(
        lejepa_loss, p, None if branches == "shared" else z, **OPTIONS
    )
    near, into_near = invariance_loop(p, z, branches == "shared")
    far, into_far = sigreg_loop(p, directions_of(0, p.shape[-1]))
    np.testing.assert_allclose([terms["invariance"], terms["sigreg"]], [near, far], rtol=1e-9)
    np.testing.assert_allclose(found, 0.7 * near + 0.3 * far, rtol=1e-9)
    expected = 0.7 * into_near + 0.3 * into_far
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_directions_are_unit_columns_and_new_for_each_key():
    one, other = directions_of(0, 5), directions_of(1, 5)
    np.testing.assert_allclose(np.linalg.norm(one, axis=0), 1, rtol=1e-12)
    assert np.abs(one - other).max() > 0.1


def test_sigreg_of_gaussian_quantiles_is_near_zero_and_of_a_constant_large():
    rows = jnp.asarray(normal_quantiles(500), jnp.float32)
    columns = jnp.stack([rows, 2 * rows, 0 * rows], axis=1)[None]
    gaussian, wide, constant = jax.jit(sigreg)(columns)[0]
    assert gaussian < 0.01 and wide > 10 and constant > 100
