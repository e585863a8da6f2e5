"""Cosine similarity and distance with well-defined gradients at the zero vector."""

import jax
import jax.numpy as jnp

NORM_FLOOR = 1e-8


def norm(x: jax.Array) -> jax.Array:
    """Euclidean norm over the last axis, with a zero gradient (not NaN) at the zero vector.

    Args:
      x: vectors, [..., D].

    Returns:
      Norms, [...], at least 0.
    """
    squared = jnp.sum(jnp.square(x), axis=-1)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def normalize(x: jax.Array) -> jax.Array:
    """Scales vectors to unit length; each norm is clamped from below at 1e-8.

    Args:
      x: vectors, [..., D].

    Returns:
      Vectors of norm 1 (or shorter, if the norm was below 1e-8), [..., D].
    """
    return x / jnp.maximum(norm(x), NORM_FLOOR)[..., None]


def cosine_similarity(x: jax.Array, y: jax.Array) -> jax.Array:
    """Cosine of the angle between vectors, with each norm clamped at 1e-8 separately.

    Args:
      x: vectors, [..., D].
      y: vectors, [..., D].

    Returns:
      Similarities in [-1, 1], [...].
    """
    return jnp.sum(normalize(x) * normalize(y), axis=-1)


def attraction(x: jax.Array, targets: jax.Array) -> jax.Array:
    """Inner product of x / ||x|| with the targets, with the norm as a constant.

    Its value is the cosine's; its gradient is the part of the cosine's gradient that points to the
    target, without the part that keeps x on its sphere.

    Args:
      x: vectors, [..., D].
      targets: of unit length or shorter, [..., D].

    Returns:
      Similarities in [-1, 1], [...].
    """
    length = jax.lax.stop_gradient(jnp.maximum(norm(x), NORM_FLOOR))
    return jnp.sum(x / length[..., None] * targets, axis=-1)


def distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Euclidean distance by direct differences.

    The expanded form ||x||^2 + ||y||^2 - 2 x.y loses the small differences that decide which
    pair is the closest when representations are near collapse.

    Args:
      x: vectors, [..., D].
      y: vectors, [..., D].

    Returns:
      Distances, [...], at least 0.
    """
    return norm(x - y)
