"""Convolution on one CPU: XLA's, with a gradient that is made of matrix products.

XLA turns the gradient of a kernel into a convolution whose window is the whole map and whose
channels are the images. For that it transposes both operands, and computes the activations that it
transposes again, through every layer that it can fuse: half of a ResNet's backward pass. The same
sums are one matrix product for each block of images, of operands that stay where they are:

    dk[r, c, i, o] = sum over n, y, x of  x_padded[n, y + r, x + c, i] dy[n, y, x, o].
"""

from functools import partial

import jax
import jax.numpy as jnp

from gsg_jax.models.conv import DIMENSIONS
from gsg_jax.models.cpu.winograd import TILE, convolve_winograd

# Elements of the larger operand in one block: with its shifts it stays in a core's share of cache.
BLOCK_ELEMENTS = 2**18
SMALL_MAP = 64  # pixels up to which XLA's transposes cost less than the shifts
WINOGRAD_CHANNELS = 256  # from which small maps are convolved by fewer products

Pair = tuple[int, int]


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair]
) -> jax.Array:
    """Convolves as `jax.lax.conv_general_dilated` does.

    XLA's convolution on a CPU is up to a hundred times slower than it should be on maps smaller
    than their kernel, which the last stage of a ResNet has at 28 pixels: those are one matrix
    product. On all others its gradient of a kernel is slow.

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

    Under differentiation small maps of many channels go by Winograd's sums, result and gradients:
    they differ from the plain ones by 1e-5 of the largest entry in float32.

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
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        seen = x[:, :: strides[0], :: strides[1]]
        return jnp.matmul(seen, kernel[0, 0])
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)


def _suits_winograd(x, kernel, strides, padding) -> bool:
    """Whether Winograd's products save more than its sums cost."""
    height, width = x.shape[1:3]
    is_small = height * width <= SMALL_MAP and not (height % TILE or width % TILE)
    is_plain = kernel.shape[:2] == (3, 3) and (strides, padding) == ((1, 1), ((1, 1), (1, 1)))
    is_wide = min(kernel.shape[2:]) >= WINOGRAD_CHANNELS
    return is_small and is_plain and is_wide and jnp.finfo(x.dtype).bits >= 32


def _convolve_in_training(x, kernel, strides, padding):
    """The same, by fewer products where they pay: evaluation keeps its digits."""
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
    if x.shape[1] * x.shape[2] <= SMALL_MAP:
        of_kernel = lambda k: _convolve_in_training(x, k, strides, padding)  # noqa: E731
        return dx, *jax.linear_transpose(of_kernel, kernel)(dy)
    return dx, kernel_gradient(x, dy, kernel.shape[:2], strides, padding)


convolve_larger_map.defvjp(_forward, _backward)


def input_gradient(
    dy: jax.Array,
    kernel: jax.Array,
    height_width: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
) -> jax.Array:
    """The gradient of a strided convolution by its input, phase by phase.

    A row of the input whose number leaves the remainder a, divided by the stride, meets the rows a,
    a + stride, a + 2 strides, ... of the kernel and no others; likewise its columns. XLA's would
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


def kernel_gradient(
    x: jax.Array,
    dy: jax.Array,
    size: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
) -> jax.Array:
    """The gradient of a convolution by its kernel.

    Args:
      x: what was convolved, [N, H, W, C].
      dy: gradient by the result, [N, rows, columns, F].
      size: of the kernel, (h, w).
      strides: along the height and the width.
      padding: zeros before and after, for the height and the width.

    Returns:
      [h, w, C, F], of the type of x; summed in float32 or wider.
    """
    of_block = _in_one_product if strides == (1, 1) else _row_by_row
    of_block = partial(of_block, size=size, strides=strides, padding=padding)
    length = _block_length(x.shape[0], max(x[0].size, dy[0].size))

    def add_block(total, start):
        rows = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=length)
        return total + of_block(rows(x), rows(dy)), None

    wide = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros((*size, x.shape[-1], dy.shape[-1]), wide)
    total, _ = jax.lax.scan(add_block, total, jnp.arange(0, x.shape[0], length))
    return total.astype(x.dtype)


def _block_length(num_images: int, elements_per_image: int) -> int:
    """Images a block: as many as fit, and as divide the batch."""
    most = max(BLOCK_ELEMENTS // elements_per_image, 1)
    return max(length for length in range(1, most + 1) if num_images % length == 0)


def _in_one_product(x, dy, *, size, strides, padding):
    """Column shifts of x times row shifts of dy: every pair of shifts is one tap of the kernel."""
    del strides
    (h, w), height, columns = size, x.shape[1], dy.shape[2]
    (before, after), of_columns = padding
    x = jnp.pad(x, ((0, 0), (0, 0), of_columns, (0, 0)))
    x_shifts = jnp.concatenate([x[:, :, c : c + columns] for c in range(w)], axis=-1)
    # Row y of dy meets row y + r - before of x.
    dy = jnp.pad(dy, ((0, 0), (h - 1 - before, h - 1 - after), (0, 0), (0, 0)))
    dy_shifts = [dy[:, h - 1 - r : h - 1 - r + height] for r in range(h)]
    product = _sum_of_outer(x_shifts, jnp.concatenate(dy_shifts, axis=-1))
    return product.reshape(w, -1, h, dy.shape[-1]).transpose(2, 0, 1, 3)


def _row_by_row(x, dy, *, size, strides, padding):
    """Column shifts of x, cut into the rows that a row of the kernel meets, times dy."""
    (h, w), (rows, columns) = size, dy.shape[1:3]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    last = (columns - 1) * strides[1] + 1
    x_shifts = [x[:, :, c : c + last : strides[1]] for c in range(w)]
    x_shifts = jnp.concatenate(x_shifts, axis=-1)
    last = (rows - 1) * strides[0] + 1
    products = [_sum_of_outer(x_shifts[:, r : r + last : strides[0]], dy) for r in range(h)]
    return jnp.stack(products).reshape(h, w, x.shape[-1], dy.shape[-1])


def _sum_of_outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum over all but the last axis of the outer products: [..., I], [..., O] to [I, O]."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    wide = jnp.promote_types(a.dtype, jnp.float32)
    over_rows = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(a, b, over_rows, preferred_element_type=wide)
