"""Convolution on one CPU: XLA's, except for tiny maps, strided gradients and small wide maps."""

from functools import partial

import jax
import jax.numpy as jnp

from gsg_jax.models.conv import DIMENSIONS
from gsg_jax.models.cpu.winograd import TILE, convolve_winograd

WINOGRAD_PIXELS, WINOGRAD_CHANNELS = 64, 256  # maps so small and so wide take fewer products

Pair = tuple[int, int]


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair]
) -> jax.Array:
    """Convolves as `jax.lax.conv_general_dilated` does.

    XLA's convolution on a CPU is up to a hundred times slower than it should be on maps smaller
    than their kernel, which the last stage of a ResNet has at 28 pixels: those are one matrix
    product. On all other maps, XLA's input gradient of a strided convolution is slow.

    Args:
      x: [N, H, W, C].
      kernel: [h, w, C, F].
      strides: along the height and the width.
      padding: zeros before and after, for the height and the width; hashable.

    Returns:
      [N, (H + padding - h) // stride + 1, likewise the width, F].
    """
    (height, width), (h, w) = x.shape[1:3], kernel.shape[:2]
    if height >= h and width >= w:
        return convolve_larger_map(x, kernel, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    bottom, right = x.shape[1] - h + 1, x.shape[2] - w + 1  # where the last window may begin
    taps = [
        x[:, row : row + bottom : strides[0], column : column + right : strides[1]]
        for row in range(h)
        for column in range(w)
    ]
    patches = jnp.concatenate(taps, axis=-1)  # [N, rows, columns, h w C]
    return jnp.matmul(patches, kernel.reshape(-1, kernel.shape[-1]))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_larger_map(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    padding: tuple[Pair, Pair],
) -> jax.Array:
    """Convolves as `jax.lax.conv_general_dilated` does; on a CPU its gradient is faster.

    Under differentiation, small maps of many channels get their result and gradients by Winograd's
    sums, which differ from the plain ones by 1e-5 of the largest entry in float32.

    Args:
      x: [N, H, W, C].
      kernel: [h, w, C, F], no larger than the padded map.
      strides: along the height and the width.
      padding: zeros before and after, for the height and the width; hashable.

    Returns:
      [N, (H + padding - h) // stride + 1, likewise the width, F].
    """
    return _convolve(x, kernel, strides, padding)


def _convolve(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)


def _suits_winograd(x, kernel, strides, padding) -> bool:
    """Whether Winograd's products save more than its sums cost."""
    height, width = x.shape[1:3]
    is_small = height * width <= WINOGRAD_PIXELS and not (height % TILE or width % TILE)
    is_plain = kernel.shape[:2] == (3, 3) and (strides, padding) == ((1, 1), ((1, 1), (1, 1)))
    is_wide = min(kernel.shape[2:]) >= WINOGRAD_CHANNELS
    return is_small and is_plain and is_wide and jnp.finfo(x.dtype).bits >= 32


def _convolve_in_training(x, kernel, strides, padding):
    """Convolves, by fewer products where they pay; evaluation keeps its digits."""
    if _suits_winograd(x, kernel, strides, padding):
        return convolve_winograd(x, kernel)
    return _convolve(x, kernel, strides, padding)


def _forward(x, kernel, strides, padding):
    return _convolve_in_training(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, residuals, dy):
    x, kernel = residuals
    if strides != (1, 1) and kernel.shape[:2] != (1, 1):
        dx = input_gradient(dy, kernel, x.shape[1:3], strides, padding)
    elif _suits_winograd(x, kernel, strides, padding):
        dx = convolve_winograd(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    else:
        of_x = lambda x: _convolve(x, kernel, strides, padding)  # noqa: E731
        (dx,) = jax.linear_transpose(of_x, x)(dy)
    of_kernel = lambda k: _convolve_in_training(x, k, strides, padding)  # noqa: E731
    return dx, *jax.linear_transpose(of_kernel, kernel)(dy)


convolve_larger_map.defvjp(_forward, _backward)


def input_gradient(
    dy: jax.Array,
    kernel: jax.Array,
    height_width: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
) -> jax.Array:
    """The gradient of a strided convolution by its input, phase by phase.

    A row of the padded input whose index modulo the stride is a meets the kernel's rows a,
    a + stride, a + 2 strides, ... and no others; likewise the columns. XLA's gradient would
    convolve dy, filled up with zeros, with the whole kernel.

    Args:
      dy: gradient by the result, [N, rows, columns, F].
      kernel: [h, w, C, F].
      height_width: of the input, H and W.
      strides: along the height and the width.
      padding: zeros before and after, for the height and the width.

    Returns:
      [N, H, W, C], of the type of dy.
    """
    (down, across), ((top, bottom), (left, right)) = strides, padding
    (height, width), (num_images, rows, columns, _) = height_width, dy.shape
    tall = -(-(height + top + bottom) // down)  # rows of a phase
    wide = -(-(width + left + right) // across)

    def phase(a, b):
        taps = kernel[a::down, b::across]
        if not taps.size:
            return jnp.zeros((num_images, tall, wide, kernel.shape[2]), dy.dtype)
        ends = (taps.shape[0] - 1, tall - rows), (taps.shape[1] - 1, wide - columns)
        back = taps[::-1, ::-1].swapaxes(2, 3)
        return _convolve(dy, back, (1, 1), ends)

    phases = jnp.stack([jnp.stack([phase(a, b) for b in range(across)], 3) for a in range(down)], 2)
    padded = phases.reshape(num_images, tall * down, wide * across, -1)
    return padded[:, top : top + height, left : left + width]
