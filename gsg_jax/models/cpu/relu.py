"""ReLU whose result is stored: on a CPU, XLA would compute it again wherever it is read."""

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def stored_relu(x: jax.Array) -> jax.Array:
    """Returns the positive part of x, of any shape.

    Both result and gradient are written to memory once. XLA would fuse the operations before them,
    through the normalisation and the shortcut, into each reader.
    """
    return jax.lax.optimization_barrier(nn.relu(x))


def _forward(x):
    y = stored_relu(x)
    return y, y


def _backward(y, dy):
    return (jax.lax.optimization_barrier(jnp.where(y > 0, dy, 0)),)


stored_relu.defvjp(_forward, _backward)
