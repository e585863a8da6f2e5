"""What LeJEPA and VISReg share: the pull to an image's mean view, and random directions."""

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Outputs
from gsg_jax.methods.similarity import normalize


def distance_to_centre(outputs: Outputs, stop_gradient: bool) -> jax.Array:
    """Mean of (c - p)^2 over all views, images and channels.

    c is the mean of an image's targets over its global views; local views are pulled to it too.

    Args:
      outputs: p [V, B, D] and z_target [G, B, D], G at least 2.
      stop_gradient: whether c is kept free of gradient.
    """
    z = jax.lax.stop_gradient(outputs.z_target) if stop_gradient else outputs.z_target
    chex.assert_equal_shape([outputs.p[0], z[0]])
    chex.assert_axis_dimension_gteq(z, 0, 2)
    return jnp.mean(jnp.square(jnp.mean(z, axis=0, keepdims=True) - outputs.p))


def project(z: jax.Array, key: jax.Array, num_directions: int) -> jax.Array:
    """Projects [V, B, D] onto M random unit vectors, the same for all views and devices: [V, B, M].

    A standard Gaussian stays a standard Gaussian on each of them.
    """
    directions = normalize(jax.random.normal(key, (num_directions, z.shape[-1]), z.dtype))
    return jnp.matmul(z, directions.T, precision=jax.lax.Precision.HIGHEST)
