"""Convolution that stays fast where the map is smaller than the kernel."""

import jax
import jax.numpy as jnp


def convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: list, **options
) -> jax.Array:
    """Convolves as `jax.lax.conv_general_dilated` does, tiny maps by one matrix product.

    XLA's convolution on a CPU is up to a hundred times slower than it should be on maps smaller
    than their kernel, which the last stage of a ResNet has at 28 pixels.

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
