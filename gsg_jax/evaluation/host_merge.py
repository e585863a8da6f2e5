"""The best of a block of similarities, on the host: where the device is the CPU.

There XLA's top-k is one thread that moves every candidate through a heap; NumPy's partition is five
times as fast, so that a search takes hardly more than its matrix product.
"""

from collections.abc import Sequence

import numpy as np

# (similarity, index) of the best rows so far, float32 and int32 [Q, k] each.
Best = tuple[np.ndarray, np.ndarray]
# Similarities of a tile's groups of rows [Q, G, group], and the highest of each [Q, G].
Tile = tuple[np.ndarray, np.ndarray]


def merge_on_host(
    best: Best, tiles: Sequence[Tile], first_row: int, num_rows: int, own_row: np.ndarray | None
) -> Best:
    """Lets a block of the bank compete with the best of the blocks before it.

    The k best rows lie in the k groups whose maxima are the highest, so only these groups are
    looked into, and two more, since two may stand too high: the one that holds the query itself,
    and the one where the padding begins. A partition takes any of those that are equal: where that
    matters, the query's whole row is looked at.

    Args:
      best: of the blocks before.
      tiles: of successive rows of the bank, as many in each.
      first_row: place of the block in the bank.
      num_rows: how many of the block's rows are no padding.
      own_row: row of the block that is each query, [Q], if it is one of its rows; or None.

    Returns:
      The best of both; of equal cosines the lowest row comes first.
    """
    num_queries, k = best[0].shape
    num_groups, group = tiles[0][0].shape[1:]
    highest = np.concatenate([of_tile for _, of_tile in tiles], axis=1)
    highest[:, group * np.arange(highest.shape[1]) >= num_rows] = -np.inf
    groups, next_highest = _highest(highest, k + 2)
    groups = np.sort(groups.astype(np.int32), axis=1)

    similarity = _of_groups(tiles, groups, num_groups).reshape(num_queries, -1)
    row = group * groups[:, :, None] + np.arange(group, dtype=np.int32)[None, None]
    row = row.reshape(similarity.shape)
    is_barred = row >= num_rows
    if own_row is not None:
        is_barred |= row == own_row[:, None]
    similarity[is_barred] = -np.inf

    similarity = np.concatenate([best[0], similarity], axis=1)
    index = np.concatenate([best[1], first_row + row], axis=1)
    places, next_best = _highest(similarity, k)
    places.sort(axis=1)  # then in the order of the rows
    similarity, index = (np.take_along_axis(x, places, axis=1) for x in (similarity, index))
    least = similarity.min(axis=1)
    is_tied = np.isfinite(least) & ((least == next_best) | (least == next_highest))
    for query in np.flatnonzero(is_tied):
        whole = np.concatenate([of_tile[query].ravel() for of_tile, _ in tiles])[:num_rows]
        if own_row is not None and 0 <= own_row[query] < num_rows:
            whole[own_row[query]] = -np.inf
        chosen = _highest_of_row(np.concatenate([best[0][query], whole]), k)
        rows = np.concatenate([best[1][query], first_row + np.arange(num_rows, dtype=np.int32)])
        similarity[query] = np.concatenate([best[0][query], whole])[chosen]
        index[query] = rows[chosen]
    order = np.argsort(-similarity, axis=1, kind="stable")
    similarity, index = (np.take_along_axis(x, order, axis=1) for x in (similarity, index))
    return similarity, index.astype(np.int32, copy=False)


def _highest(values: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the highest values of each row [Q, num], and the highest of the others [Q]."""
    width = values.shape[1]
    if num >= width:
        places = np.broadcast_to(np.arange(width), values.shape).copy()
        return places, np.full(len(values), -np.inf, values.dtype)
    places = np.argpartition(values, width - num - 1, axis=1)[:, width - num - 1 :]
    others = np.take_along_axis(values, places[:, :1], axis=1)[:, 0]
    return places[:, 1:], others


def _highest_of_row(values: np.ndarray, num: int) -> np.ndarray:
    """Places of the highest values [n] in order, of equal ones the first: [num]."""
    least = np.partition(values, len(values) - num)[len(values) - num]
    higher = np.flatnonzero(values > least)
    equal = np.flatnonzero(values == least)[: num - len(higher)]
    return np.sort(np.concatenate([higher, equal]))


def _of_groups(tiles: Sequence[Tile], groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Similarities of the groups [Q, M], each from the tile that holds it: [Q, M, group]."""
    found = np.empty((*groups.shape, tiles[0][0].shape[2]), np.float32)
    tile_of = groups // num_groups
    for number, (similarity, _) in enumerate(tiles):
        query, place = np.nonzero(tile_of == number)
        found[query, place] = similarity[query, groups[query, place] - number * num_groups]
    return found
