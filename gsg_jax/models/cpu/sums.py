"""BatchNorm's sums over images and pixels, in stages that read a CPU's memory in order."""

import math

import jax
import jax.numpy as jnp

from gsg_jax.models.norm import like_views


def moments_in_stages(x: jax.Array, near_mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [V, C] of [B, V, ..., C] in two passes; near_mean is not needed."""
    del near_mean
    count = x.size // (x.shape[1] * x.shape[-1])
    mean = sum_in_stages(x) / count
    return mean, sum_in_stages(jnp.square(x - like_views(mean, x))) / count


def sum_in_stages(x: jax.Array) -> jax.Array:
    """Sums [B, V, ..., C] over images and pixels to [V, C].

    A few pixels are summed at a time, then each view of an image, then the images. XLA's sum over
    the outer axes of a large array reads a CPU's memory in strides, and its input has to be stored
    first; these sums compute their input on the way.
    """
    num_images, num_views, *pixels, channels = x.shape
    num_pixels = math.prod(pixels)
    if num_pixels == 1:
        return jnp.sum(x, axis=(0, *range(2, x.ndim - 1)))
    few = next((n for n in (8, 7, 4, 5, 9) if num_pixels % n == 0 and n != pixels[-1]), 1)
    if num_pixels > 64 and few > 1:
        x = jnp.sum(x.reshape(-1, few, channels), axis=1)
    x = jnp.sum(x.reshape(num_images * num_views, -1, channels), axis=1)
    return jnp.sum(x.reshape(num_images, num_views, channels), axis=0)
