"""What the tests of the methods share: fresh outputs, and gradients of a loss in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from gsg_jax.methods.method import Outputs


def fresh(seed, num_images=7, width=5, collapse=1.0):
    """Random predictions and targets, [2, N, D] each; a small `collapse` brings all rows close."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=width)
    return tuple(centre + collapse * rng.normal(size=(2, num_images, width)) for _ in range(2))


def outputs_of(p, z):
    """Outputs of an online branch p and a target branch z."""
    return Outputs(h=p, z=p, p=p, z_target=z)


def loss_and_gradient(loss, p, z=None, memory=None, **options):
    """(value, gradient, memory, metrics) in float64; without z the branches share their weights."""
    with jax.enable_x64(True):

        def value(p):
            targets = p if z is None else jnp.asarray(z, jnp.float64)
            before = jax.tree.map(jnp.asarray, memory or {})
            value, *rest = loss(outputs_of(p, targets), before, jax.random.key(0), **options)
            return value, rest

        p = jnp.asarray(p, jnp.float64)
        (value, (memory, metrics)), gradient = jax.value_and_grad(value, has_aux=True)(p)
        return np.asarray(value), np.asarray(gradient), jax.device_get((memory, metrics))


def unit(x):
    """Rows scaled to unit length."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
