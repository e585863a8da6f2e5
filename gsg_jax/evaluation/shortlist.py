"""The best rows of a block of the bank, listed by bfloat16 products and ranked by float32 ones.

Where a processor multiplies bfloat16 several times as fast as float32, they are found sooner so.
With q a query, b a row, m the block's mean and d = b - m, all rows stand in the order of q.d, since
q.m is the same for all. Rounding to bfloat16 leaves q' and d', and by Cauchy and Schwarz

    |q.d - q'.d'| <= |d - d'| + |q - q'| |d'|

is at most some slack for all rows. The k best rows have q.d no lower than any k others', so that
their q'.d' is at most twice the slack below the k-th highest. These rows are listed, and only their
cosines are computed. (The mean is taken off because embeddings look much the same way: what is left
is shorter, and so is the slack.)
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gsg_jax.evaluation.host_merge import Best, Tile
from gsg_jax.methods.similarity import norm, normalize

# A cosine by itself costs as much as some 32 within a product of whole blocks.
SHARE_WORTH_LISTING = 1 / 32
SHARE_CROWDED = 1 / 16  # of the rows listed for one query: products of float32 are faster
EPSILON = 2.0**-24  # relative rounding of float32


class RoundedBlock(NamedTuple):
    """Rows of the bank, and the same around their mean in bfloat16."""

    first_row: int  # their place in the bank
    rows: np.ndarray  # float32 [N, F] of unit length
    num_rows: int  # the others are padding
    tiles: Sequence[jax.Array]  # bfloat16, as a product is fastest: each [F, N / num_tiles]
    mean: np.ndarray  # float32 [F]
    error: float  # length of the longest difference that rounding made
    length: float  # of the longest row of a tile


def is_worth_listing(k: int, num_rows: int) -> bool:
    """Whether the k best of a bank are so few that ranking them by themselves costs little."""
    return 2 * k <= SHARE_WORTH_LISTING * num_rows


def round_block(
    rows: np.ndarray, first_row: int, num_rows: int, num_tiles: int, pool: ThreadPoolExecutor
) -> RoundedBlock:
    """Prepares a block of the bank.

    Args:
      rows: of any length, the last of them padding with zeros, [N, F].
      first_row: place of the block in the bank.
      num_rows: how many are no padding.
      num_tiles: matrix products of a query, a divisor of N.
      pool: threads that share the work.

    Returns:
      The block.
    """
    unit = np.empty(rows.shape, np.float32)
    tiles = np.split(unit, num_tiles)
    list(
        pool.map(lambda tile, of: np.copyto(tile, unit_rows(of)), tiles, np.split(rows, num_tiles))
    )
    mean = unit[:num_rows].mean(axis=0)
    is_row = np.split(np.arange(len(unit)) < num_rows, num_tiles)
    rounded = pool.map(partial(_round_around, mean), tiles, is_row)
    tiles, errors, lengths = zip(*rounded, strict=True)
    longest = float(max(errors)), float(max(lengths))
    return RoundedBlock(first_row, unit, num_rows, tiles, mean, *longest)


def merge_by_shortlist(
    best: Best,
    is_out: np.ndarray,
    queries: np.ndarray,
    block: RoundedBlock,
    own_row: np.ndarray | None,
    *,
    group: int,
) -> tuple[Best, np.ndarray]:
    """Lets a block of the bank compete with the best of the blocks before it.

    Args:
      best: of the blocks before.
      is_out: queries that are not to be searched for, bool [Q].
      queries: of any length, [Q, F].
      block: of the bank.
      own_row: row of the block that is each query, [Q], if it is one of its rows; or None.
      group: rows that are looked at by their highest product first; a divisor of a tile's.

    Returns:
      (best, is_out): the best of both, of equal cosines the lowest row first; and out are now also
      the queries that see so much of the block alike that ranking their lists would take long.
    """
    if is_out.all():
        return best, is_out
    k = best[0].shape[1]
    unit, rounded, error = _round_queries(queries)
    products = jax.tree.map(np.asarray, _products(rounded, block.tiles, group=group))
    unit = np.asarray(unit)

    sums = 2 * EPSILON * unit.shape[1] * (block.length + 1)  # what the sums themselves round
    slack = block.error + np.asarray(error) * block.length + sums
    highest = np.concatenate([of_tile for _, of_tile in products], axis=1)
    highest[:, group * np.arange(highest.shape[1]) >= block.num_rows] = -np.inf
    # Two groups may stand too high: the query's own, and the one where the padding begins.
    least = np.maximum(
        _at_rank(highest, k + 2) - 2 * slack,
        best[0][:, -1] - unit @ block.mean - slack,  # what the blocks before have
    )
    most = int(SHARE_CROWDED * len(block.rows))
    least[is_out] = np.inf
    query, row, is_crowded = _listed(products, highest, least, most)
    del products  # the next search's take their memory

    is_barred = row >= block.num_rows
    if own_row is not None:
        is_barred |= row == own_row[query]
    query, row = query[~is_barred], row[~is_barred]
    return _ranked(best, unit, query, row, block), is_out | is_crowded


@jax.jit
def _round_around(mean, rows, is_row):
    """The rows less the mean in bfloat16, [F, N], the largest error, and the largest length."""
    rounded, error = _to_bfloat16(jnp.where(is_row[:, None], rows - mean[None], 0.0))
    return rounded.T, jnp.max(error), jnp.max(norm(rounded.astype(jnp.float32)))


@jax.jit
def unit_rows(rows: jax.Array) -> jax.Array:
    """Rows of any float type scaled to unit length, float32 [N, F]."""
    return normalize(rows.astype(jnp.float32))


@jax.jit
def _round_queries(queries):
    unit = unit_rows(queries)
    return unit, *_to_bfloat16(unit)


def _to_bfloat16(rows):
    """Rounded rows, and the length of the difference of each."""
    rounded = jax.lax.reduce_precision(rows, exponent_bits=8, mantissa_bits=7)
    return rounded.astype(jnp.bfloat16), norm(rows - rounded)


@partial(jax.jit, static_argnames="group")
def _products(queries, tiles, *, group):
    """Products [Q, N / group, group] of each tile, and the highest of every group [Q, N / group].

    One program for all tiles takes two thirds of the time that one for each takes.
    """
    found = []
    for tile in tiles:
        products = jnp.matmul(queries, tile, preferred_element_type=jnp.float32)
        products = products.reshape(len(queries), -1, group)
        found.append((products, jnp.max(products, axis=2)))
    return found


def _at_rank(values: np.ndarray, rank: int) -> np.ndarray:
    """The value of each row that has this rank from the highest down, or -inf: [Q]."""
    width = values.shape[1]
    if rank > width:
        return np.full(len(values), -np.inf, values.dtype)
    return np.partition(values, width - rank, axis=1)[:, width - rank]


def _listed(
    products: list[Tile], highest: np.ndarray, least: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The products that are not below the least: query, row, and whose are too many, bool [Q].

    They come in the order of the queries, and those of a query in the order of the rows; there are
    none of a query that has too many.
    """
    num_groups, group = products[0][0].shape[1:]
    num_listed = np.zeros(len(least), int)
    queries, rows = [], []
    for number, (of_tile, _) in enumerate(products):
        first_group = number * num_groups
        is_high = highest[:, first_group : first_group + num_groups] >= least[:, None]
        is_high[num_listed > most] = False
        place = np.flatnonzero(is_high)  # of a group among those of all queries
        query = place // num_groups
        of_groups = of_tile.reshape(-1, group).take(place, axis=0)
        found, member = np.divmod(np.flatnonzero(of_groups >= least[query][:, None]), group)
        queries.append(query[found])
        rows.append((first_group + place[found] % num_groups) * group + member)
        num_listed += np.bincount(queries[-1], minlength=len(least))
    query, row = np.concatenate(queries), np.concatenate(rows)
    is_crowded = num_listed > most
    is_kept = ~is_crowded[query]
    query, row = query[is_kept], row[is_kept]
    order = np.argsort(query, kind="stable")
    return query[order], row[order], is_crowded


def _ranked(
    best: Best, unit: np.ndarray, query: np.ndarray, row: np.ndarray, block: RoundedBlock
) -> Best:
    """The best of those before and of the rows listed for each query, by their cosines."""
    similarity, index = best[0].copy(), best[1].copy()
    k = similarity.shape[1]
    num_before = np.count_nonzero(np.isfinite(similarity), axis=1)
    ends = np.searchsorted(query, np.arange(len(unit) + 1))
    gathered = np.empty((np.diff(ends).max(), unit.shape[1]), np.float32)
    for number in np.unique(query):
        before = slice(num_before[number])
        listed = row[ends[number] : ends[number + 1]]
        vectors = block.rows.take(listed, axis=0, out=gathered[: len(listed)], mode="clip")
        cosines = np.concatenate([best[0][number, before], np.vecdot(vectors, unit[number])])
        places = np.concatenate([best[1][number, before], block.first_row + listed])
        order = _descending(cosines)[:k]
        similarity[number, : len(order)] = cosines[order]
        index[number, : len(order)] = places[order]
    return similarity, index


def _descending(values: np.ndarray) -> np.ndarray:
    """Places of values from the highest down, of equal ones the first before the others."""
    order = np.argsort(-values)  # several times as fast as a stable one
    in_order = values[order]
    if np.any(in_order[1:] == in_order[:-1]):
        return np.argsort(-values, kind="stable")
    return order
