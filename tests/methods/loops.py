"""What the tests of the methods share: fresh rows, and compiled gradients of a loss in float64."""

import functools
import statistics

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


@functools.partial(jax.jit, static_argnames=("loss", "options"))
def _value_and_gradient(loss, options, p, z, memory, key, others):
    def value(p):
        outputs = outputs_of(p, p if z is None else z)._replace(**others)
        value, *rest = loss(outputs, memory, key, **dict(options))
        return value, rest

    return jax.value_and_grad(value, has_aux=True)(p)


def loss_and_gradient(
    loss, p, z=None, memory=None, *, key=0, dtype=np.float64, others=(), **options
):
    """(value, gradient, memory, metrics); without z the branches share their weights.

    `others` are further fields of Outputs.
    """
    with jax.enable_x64(dtype == np.float64):
        cast = functools.partial(jnp.asarray, dtype=dtype)
        (value, rest), gradient = _value_and_gradient(
            loss,
            tuple(options.items()),
            cast(p),
            None if z is None else cast(z),
            jax.tree.map(jnp.asarray, memory or {}),
            jax.random.key(key),
            dict(others),
        )
        return np.asarray(value), np.asarray(gradient), jax.device_get(rest)


def unit(x):
    """Rows scaled to unit length."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def normal_quantiles(num_rows):
    """Phi^-1(i / (N + 1)), i = 1 .. N, [N]."""
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf(i / (num_rows + 1)) for i in range(1, num_rows + 1)])
