"""Cosine similarity and distance with well-defined gradients at the zero vector."""

import jax
import jax.numpy as jnp

NORM_FLOOR = 1e-8


def norm(x: jax.Array) -> jax.Array:
    """Norms [...] of vectors [..., D], with a zero gradient (not NaN) at the zero vector."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def normalize(x: jax.Array) -> jax.Array:
    """Scales vectors [..., D] to unit length; each norm is clamped from below at 1e-8."""
    return x / jnp.maximum(norm(x), NORM_FLOOR)[..., None]


def cosine_to_unit(x: jax.Array, targets: jax.Array) -> jax.Array:
    """Cosine of vectors [..., D] with targets of unit length, or the mean of several cosines."""
    return jnp.sum(normalize(x) * targets, axis=-1)


def attraction(x: jax.Array, targets: jax.Array) -> jax.Array:
    """Inner product of x / ||x|| with the targets, with the norm as a constant.

    Its value is the cosine's; its gradient is the part of the cosine's gradient that points to the
    target, without the part that keeps x on its sphere.

    Args:
      x: vectors, [..., D].
      targets: of unit length or shorter, [..., D].
    """
    length = jax.lax.stop_gradient(jnp.maximum(norm(x), NORM_FLOOR))
    return jnp.sum(x / length[..., None] * targets, axis=-1)


def distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Euclidean distance of vectors [..., D] by direct differences.

    The expanded form ||x||^2 + ||y||^2 - 2 x.y loses the small differences that decide which
    pair is the closest when representations are near collapse.
    """
    return norm(x - y)
