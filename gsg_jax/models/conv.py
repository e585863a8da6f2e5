"""Convolutions: one that stays fast on a CPU, and one of standardised kernels."""

import jax
import jax.numpy as jnp

from gsg_jax.devices.backend import is_one_cpu
from gsg_jax.models.cpu_conv import convolve_on_cpu

STANDARDIZE_EPSILON = 1e-5


def convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: list, **options
) -> jax.Array:
    """Convolves as `jax.lax.conv_general_dilated` does, tiny maps by one matrix product.

    XLA's convolution on a CPU is up to a hundred times slower than it should be on maps smaller
    than their kernel, which the last stage of a ResNet has at 28 pixels; and its gradient of a
    kernel is slow on all others. TPUs, GPUs, and several devices that only seem to be CPUs, run
    XLA's.

    Args:
      x: [N, H, W, C].
      kernel: [h, w, C, F].
      strides: along the height and the width.
      padding: zeros before and after, for the height and the width.
      options: the other arguments of conv_general_dilated, as flax.linen.Conv passes them; no
        dilation and one feature group.

    Returns:
      [N, (H + padding - h) // stride + 1, likewise the width, F].
    """
    (height, width), (h, w) = x.shape[1:3], kernel.shape[:2]
    if height >= h and width >= w:
        if is_one_cpu():
            fixed = tuple(strides), tuple(map(tuple, padding))
            return convolve_on_cpu(x, kernel, *fixed, options["precision"])
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    bottom, right = x.shape[1] - h + 1, x.shape[2] - w + 1  # where the last window may begin
    taps = [
        x[:, row : row + bottom : strides[0], column : column + right : strides[1]]
        for row in range(h)
        for column in range(w)
    ]
    patches = jnp.concatenate(taps, axis=-1)  # [N, rows, columns, h w C]
    return jnp.matmul(patches, kernel.reshape(-1, kernel.shape[-1]), precision=options["precision"])


def convolve_standardized(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: list, **options
) -> jax.Array:
    """Convolves as `convolve` does, by the standardised kernel."""
    return convolve(x, standardize(kernel), strides, padding, **options)


def standardize(kernel: jax.Array) -> jax.Array:
    """Weight standardisation: mean 0 and variance 1 over the inputs of every output channel.

    Args:
      kernel: [h, w, C, F].

    Returns:
      The standardised kernel, of the same type; computed in float32 or wider.

    Source: Qiao et al. (arXiv 1903.10520), section 3; no learned gain.
    """
    exact = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    centred = exact - jnp.mean(exact, axis=(0, 1, 2), keepdims=True)
    var = jnp.mean(jnp.square(centred), axis=(0, 1, 2), keepdims=True)  # [1, 1, 1, F]
    return (centred * jax.lax.rsqrt(var + STANDARDIZE_EPSILON)).astype(kernel.dtype)
