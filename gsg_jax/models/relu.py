"""ReLU whose result is stored: on a CPU, XLA would compute it anew wherever it is read."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gsg_jax.devices.backend import is_one_cpu


def relu(x: jax.Array) -> jax.Array:
    """The positive part of x, of any shape.

    On one CPU both it and its gradient are written to memory once. XLA would fuse what leads to
    them, through the normalisation and the shortcut, into each of their readers.
    """
    return _stored_relu(x) if is_one_cpu() else nn.relu(x)


@jax.custom_vjp
def _stored_relu(x: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(nn.relu(x))


def _forward(x):
    y = _stored_relu(x)
    return y, y


def _backward(y, dy):
    return (jax.lax.optimization_barrier(jnp.where(y > 0, dy, 0)),)


_stored_relu.defvjp(_forward, _backward)
