"""Winograd's 3x3 convolution: 36 matrix products where the plain sum takes 144.

A map is cut into tiles of 4 x 4. With the 6 x 6 pixels x that a tile's results depend on, and the
kernel k of one pair of channels, the tile is

    y = A' ((G k G') * (B' x B)) A,

where * multiplies entry by entry; summed over the channels, that is one matrix product for each of
the 36 entries. A, B and G stem from the values of polynomials at 0, 1, -1, 2, -2 and infinity.

Source: Lavin & Gray, CVPR 2016 (arXiv 1509.09308), section 4.3.
"""

import jax
import jax.numpy as jnp

TILE = 4  # pixels of a tile's side
B_TRANSPOSED = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
A_TRANSPOSED = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def convolve_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with a stride of 1 and a padding of 1.

    In float32 its rounding error is some ten times the plain sum's: 1e-5 of the largest entry.

    Args:
      x: [N, H, W, C]; H and W are multiples of TILE.
      kernel: [3, 3, C, F].

    Returns:
      [N, H, W, F].
    """
    products = jnp.matmul(_of_input(x), _of_kernel(kernel))
    return _to_map(jax.lax.optimization_barrier(products), x.shape[:3])


def _of_input(x: jax.Array) -> jax.Array:
    """B' x B of every tile: [N, H, W, C] to [36, N x tiles, C]."""
    channels = x.shape[-1]
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    x = _combine(B_TRANSPOSED, _windows(x, axis=1), axis=0)  # [6, N, rows, W + 2, C]
    x = jax.lax.optimization_barrier(x)  # or every use recomputes it
    x = _combine(B_TRANSPOSED, _windows(x, axis=3), axis=1)  # [6, 6, N, rows, columns, C]
    return jax.lax.optimization_barrier(x.reshape(36, -1, channels))


def _windows(x: jax.Array, axis: int) -> list[jax.Array]:
    """The 6 pixels that a tile depends on along an axis: 6 arrays, with an entry for every tile."""
    last = x.shape[axis] - TILE - 1
    return [jax.lax.slice_in_dim(x, start, start + last, TILE, axis) for start in range(TILE + 2)]


def _of_kernel(kernel: jax.Array) -> jax.Array:
    """G k G': [3, 3, C, F] to [36, C, F]."""
    rows = jax.lax.optimization_barrier(_combine(G, list(kernel), axis=1))  # [3, 6, C, F]
    both = _combine(G, list(rows), axis=1)  # [6, 6, C, F]: rows first
    return jax.lax.optimization_barrier(both.reshape(36, *kernel.shape[2:]))


def _to_map(products: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """A' m A of every tile: [36, N x tiles, F] to [N, H, W, F]."""
    (num_images, height, width), channels = shape, products.shape[-1]
    products = products.reshape(6, 6, -1, channels)
    rows = _combine(A_TRANSPOSED, list(products), axis=2)  # [6, N x tiles, 4, F]
    rows = jax.lax.optimization_barrier(rows)
    tiles = _combine(A_TRANSPOSED, list(rows), axis=2)  # [N x tiles, 4, 4, F]
    tiles = tiles.reshape(num_images, height // TILE, width // TILE, TILE, TILE, channels)
    return tiles.swapaxes(2, 3).reshape(num_images, height, width, channels)


def _combine(matrix: tuple, parts: list[jax.Array], axis: int) -> jax.Array:
    """Sums of the parts, weighted by each row of a matrix, stacked along an axis."""
    sums = []
    for row in matrix:
        terms = [
            part if weight == 1 else weight * part
            for weight, part in zip(row, parts, strict=True)
            if weight
        ]
        sums.append(sum(terms[1:], terms[0]))
    return jnp.stack(sums, axis)
