"""The best rows of a block of the bank, listed by bfloat16 products and ranked by float32 ones.

Where a processor multiplies bfloat16 many times as fast as float32, the same rows are found sooner.
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
from gsg_jax.similarity import norm, normalize

# A cosine by itself costs as much as some 32 within a product of whole blocks.
SHARE_WORTH_LISTING = 1 / 32
SHARE_CROWDED = 1 / 16  # of the block's rows listed for one query: float32 products are faster
EPSILON = 2.0**-24  # relative rounding of float32


class RoundedBlock(NamedTuple):
    """Rows of the bank, and the same around their mean in bfloat16."""

    rows: np.ndarray  # float32 [N, F] of unit length
    num_rows: int  # the others are padding
    tiles: Sequence[jax.Array]  # bfloat16, as a product is fastest: each [F, N / num_tiles]
    mean: np.ndarray  # float32 [F]
    error: float  # length of the longest difference that rounding made
    length: float  # of the longest row in the tiles


def is_worth_listing(k: int, num_rows: int) -> bool:
    """Whether the k best of a bank are so few that ranking them by themselves costs little."""
    return 2 * k <= SHARE_WORTH_LISTING * num_rows


def round_block(
    rows: np.ndarray, num_rows: int, num_tiles: int, pool: ThreadPoolExecutor
) -> RoundedBlock:
    """Prepares a block of the bank.

    Args:
      rows: of any length, the last of them padding with zeros, [N, F].
      num_rows: how many are no padding.
      num_tiles: matrix products of a query, a divisor of N.
      pool: threads that share the work.

    Returns:
      The block.
    """
    unit = np.empty(rows.shape, np.float32)
    tiles = np.split(unit, num_tiles)
    list(pool.map(lambda tile, of: np.copyto(tile, _unit(of)), tiles, np.split(rows, num_tiles)))
    mean = unit[:num_rows].mean(axis=0)
    rounded, errors, lengths = zip(*pool.map(partial(_round_around, mean), tiles), strict=True)
    return RoundedBlock(unit, num_rows, rounded, mean, float(max(errors)), float(max(lengths)))


def merge_by_shortlist(
    best: Best,
    queries: np.ndarray,
    num_queries: int,
    block: RoundedBlock,
    first_row: int,
    itself: int | None,
    *,
    group: int,
) -> Best | None:
    """Lets a block of the bank compete with the best of the blocks before it.

    Args:
      best: of the blocks before.
      queries: of any length, [Q, F].
      num_queries: how many are no padding.
      block: of the bank.
      first_row: its place in the bank.
      itself: row of the block that is the first query, or None.
      group: rows that are looked at by their highest product first; a divisor of a tile's.

    Returns:
      The best of both; of equal cosines the lowest row comes first. None where so many rows are
      alike that the list is long: then nothing is gained.
    """
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
    least[num_queries:] = np.inf
    most = int(SHARE_CROWDED * len(block.rows))
    listed = _listed(products, highest, least, most * num_queries)
    del products  # the next search's take their memory
    if listed is None or np.bincount(listed[0], minlength=1).max() > most:
        return None

    query, row = listed
    is_barred = row >= block.num_rows
    if itself is not None:
        is_barred |= row == itself + query
    query, row = query[~is_barred], row[~is_barred]
    return _ranked(best, unit[:num_queries], query, row, block.rows, first_row)


@jax.jit
def _round_around(mean, rows):
    """The rows less the mean in bfloat16, [F, N], the largest error, and the largest length."""
    rounded, error = _to_bfloat16(rows - mean[None])
    return rounded.T, jnp.max(error), jnp.max(norm(rounded.astype(jnp.float32)))


@jax.jit
def _unit(rows):
    return normalize(rows.astype(jnp.float32))


@jax.jit
def _round_queries(queries):
    unit = _unit(queries)
    return unit, *_to_bfloat16(unit)


def _to_bfloat16(rows):
    """Rounded rows, and the length of the difference of each."""
    rounded = jax.lax.reduce_precision(rows, exponent_bits=8, mantissa_bits=7)
    return rounded.astype(jnp.bfloat16), norm(rows - rounded)


@partial(jax.jit, static_argnames="group")
def _products(queries, tiles, *, group):
    """Products [Q, N / group, group] of each tile, and the highest of every group [Q, N / group].

    All tiles in one program: their memory is asked for at once, which is a third of the time.
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
) -> tuple[np.ndarray, np.ndarray] | None:
    """The query and the row of every product that is not below the least, unless they are too many.

    They come in the order of the queries, and those of a query in the order of the rows.
    """
    num_groups, group = products[0][0].shape[1:]
    queries, rows, num_listed = [], [], 0
    for number, (of_tile, _) in enumerate(products):
        first_group = number * num_groups
        is_high = highest[:, first_group : first_group + num_groups] >= least[:, None]
        place = np.flatnonzero(is_high)  # of a group among those of all queries
        query = place // num_groups
        of_groups = of_tile.reshape(-1, group).take(place, axis=0)
        found, member = np.divmod(np.flatnonzero(of_groups >= least[query][:, None]), group)
        queries.append(query[found])
        rows.append((first_group + place[found] % num_groups) * group + member)
        num_listed += len(found)
        if num_listed > most:
            return None
    query, row = np.concatenate(queries), np.concatenate(rows)
    order = np.argsort(query, kind="stable")
    return query[order], row[order]


def _ranked(
    best: Best,
    unit: np.ndarray,
    query: np.ndarray,
    row: np.ndarray,
    rows: np.ndarray,
    first_row: int,
) -> Best:
    """The best of those before and of the rows listed for each query, by their cosines."""
    similarity, index = best[0].copy(), best[1].copy()
    k = similarity.shape[1]
    num_before = np.count_nonzero(np.isfinite(similarity), axis=1)
    ends = np.searchsorted(query, np.arange(len(unit) + 1))
    gathered = np.empty((np.diff(ends).max(), rows.shape[1]), np.float32)
    for number, vector in enumerate(unit):
        before = slice(num_before[number])
        listed = row[ends[number] : ends[number + 1]]
        vectors = rows.take(listed, axis=0, out=gathered[: len(listed)], mode="clip")
        cosines = np.concatenate([best[0][number, before], np.vecdot(vectors, vector)])
        places = np.concatenate([best[1][number, before], first_row + listed])
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
