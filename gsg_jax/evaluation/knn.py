"""The k-nearest-neighbour classifier: how good are embeddings without training anything?"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gsg_jax.devices.backend import multiplies_bfloat16_fast
from gsg_jax.evaluation.host_merge import Best, merge_on_host
from gsg_jax.evaluation.shortlist import (
    RoundedBlock,
    is_worth_listing,
    merge_by_shortlist,
    round_block,
    unit_rows,
)
from gsg_jax.methods.similarity import norm

Way = Literal["device", "host", "shortlist"]

# On a CPU a matrix product is fastest with many queries and a result that stays in its cache: so a
# block of the bank is a number of tiles, and only the choice of the best looks at all of them.
BANK_BLOCK = 2**16  # rows of the bank at once, or fewer where they are wide
BLOCK_NUMBERS = 2**27  # of one array's block: 512 MiB
TILE = {"device": 2**13, "host": 2**13, "shortlist": 2**11}  # rows in one matrix product
QUERY_BLOCK = {"device": 512, "host": 512, "shortlist": 256}  # at once, or fewer where wide
MANY_QUERIES = 1024  # for which a bank is worth rounding
SEARCHES_AT_ONCE = 3  # on a CPU the choice has one thread: other blocks' products fill the rest
VOTE_BLOCK = 1024  # queries whose votes for all classes are counted at once


def neighbours(
    bank: np.ndarray, query: np.ndarray, k: int, *, leave_one_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of a bank that are most similar to each query, by cosine; exact.

    Both arrays stay on the host (a np.memmap on its disk), and go to the device block by block:
    its memory bounds neither of them.

    Args:
      bank: embeddings of any length and float type, [N, F]; normalised here.
      query: embeddings, [Q, F]; normalised here.
      k: neighbours, from 1 to N (to N - 1 with leave_one_out).
      leave_one_out: the query is the bank, and no row is its own neighbour.

    Returns:
      (similarity, index), float32 and int32 [Q, k]: cosines in [-1, 1] from the highest down, and
      the rows of the bank they belong to; of equal cosines the lowest row comes first.

    Raises:
      ValueError: where k is larger than the bank, or a row is not finite.
    """
    if k > len(bank) - leave_one_out:
        raise ValueError(f"k is {k}, the bank has {len(bank)} images: take a smaller k")
    most_rows = max(1, BLOCK_NUMBERS // bank.shape[1])
    bank_block = min(len(bank), BANK_BLOCK, most_rows)
    way = _best_way(k, bank_block, len(query))
    return blocked_neighbours(
        bank,
        query,
        k,
        itself=np.arange(len(query)) if leave_one_out else None,
        bank_block=bank_block,
        tile=TILE[way],
        query_block=min(QUERY_BLOCK[way], most_rows),
        group=2 ** max(0, round(np.log2(bank_block / k) / 2)),  # as many groups as candidates
        way=way,
    )


def _best_way(k: int, bank_block: int, num_queries: int) -> Way:
    if jax.default_backend() != "cpu":
        return "device"
    is_short = is_worth_listing(k, bank_block) and num_queries >= MANY_QUERIES
    return "shortlist" if is_short and multiplies_bfloat16_fast() else "host"


def blocked_neighbours(
    bank: np.ndarray,
    query: np.ndarray,
    k: int,
    *,
    itself: np.ndarray | None,
    bank_block: int,
    tile: int,
    query_block: int,
    group: int,
    way: Way,
) -> tuple[np.ndarray, np.ndarray]:
    """`neighbours` by sizes, which change its time and memory, and nothing else.

    Args:
      bank: embeddings, [N, F].
      query: embeddings, [Q, F].
      k: neighbours.
      itself: the row of the bank that is each query, and no neighbour of it, [Q]; or None.
      bank_block: rows of the bank at once, rounded up to whole groups in every tile.
      tile: rows of a block, at most, in one matrix product.
      query_block: queries at once.
      group: neighbouring rows of the bank that compete by their best one first.
      way: whether the device chooses the best, NumPy on the host, or NumPy from a list that
        bfloat16 products make; queries whose list is long are searched for on the host then.

    Returns:
      (similarity, index), each [Q, k].

    Raises:
      ValueError: where a row is not finite.
    """
    sizes = {"bank_block": bank_block, "tile": tile, "query_block": query_block, "group": group}
    _check_finite("bank", bank, min(tile, len(bank)))
    _check_finite("query", query, min(query_block, len(query)))
    (similarity, index), is_crowded = _searched(bank, query, k, itself, way, **sizes)
    if is_crowded.any():
        itself = None if itself is None else itself[is_crowded]
        crowded, _ = _searched(bank, query[is_crowded], k, itself, "host", **sizes)
        similarity[is_crowded], index[is_crowded] = crowded
    return similarity, index


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that share a search; kept, since new ones for each make the process grow."""
    return ThreadPoolExecutor(SEARCHES_AT_ONCE)


def _searched(
    bank: np.ndarray,
    query: np.ndarray,
    k: int,
    itself: np.ndarray | None,
    way: Way,
    *,
    bank_block: int,
    tile: int,
    query_block: int,
    group: int,
) -> tuple[Best, np.ndarray]:
    """The best rows of the bank, but not for queries whose lists are long, and which these are."""
    num_tiles = -(-bank_block // tile)
    bank_block = _even(bank_block, len(bank), num_tiles * group)
    query_block = _even(query_block, len(query), 1)
    best = np.full((len(query), k), -np.inf, np.float32), np.zeros((len(query), k), np.int32)
    is_crowded = np.zeros(len(query), bool)

    def join(place_and_queries, block):
        first_query, queries = place_and_queries
        here = slice(first_query, first_query + len(queries))
        padding = (0, len(queries) - len(is_crowded[here]))
        before = tuple(np.pad(of_best[here], (padding, (0, 0))) for of_best in best)
        own_row = None
        if itself is not None:
            own_row = np.pad(itself[here] - block.first_row, padding, constant_values=-1)
        if isinstance(block, RoundedBlock):
            is_out = np.pad(is_crowded[here], padding, constant_values=True)
            found, is_out = merge_by_shortlist(before, is_out, queries, block, own_row, group=group)
            is_crowded[here] = is_out[: len(is_crowded[here])]
        else:
            found = _merged(before, queries, block, own_row, group=group, way=way)
        for of_best, of_found in zip(best, found, strict=True):
            of_best[here] = of_found[: len(of_best[here])]

    for first_row, rows in _blocks(bank, bank_block):
        num_rows = min(bank_block, len(bank) - first_row)
        if way == "shortlist":
            block = round_block(rows, first_row, num_rows, num_tiles, _pool())
        else:
            tiles = list(_pool().map(unit_rows, np.split(rows, num_tiles)))
            block = _Block(first_row, num_rows, tiles)
        del rows  # which may be a padded copy
        list(_pool().map(partial(join, block=block), _blocks(query, query_block)))
    return best, is_crowded


class _Block(NamedTuple):
    """Rows of the bank that compete for the best places at once."""

    first_row: int
    num_rows: int  # that are no padding
    tiles: list[jax.Array]  # of unit rows, float32


def _merged(
    best: Best,
    queries: np.ndarray,
    block: _Block,
    own_row: np.ndarray | None,
    *,
    group: int,
    way: Way,
) -> Best:
    """The best of the blocks before and of this one, for one block of queries."""
    tiles = [_similarities(queries, rows, group=group) for rows in block.tiles]
    if way == "device":
        found = _merge(best, tiles, block.first_row, block.num_rows, own_row)
        return tuple(map(np.asarray, found))
    tiles = [tuple(map(np.asarray, of_tile)) for of_tile in tiles]
    return merge_on_host(best, tiles, block.first_row, block.num_rows, own_row)


def _even(block: int, total: int, multiple: int) -> int:
    """Size that covers the total with as many blocks, so that the last is hardly padded."""
    size = -(-total // -(-total // block))
    return multiple * -(-size // multiple)


def _blocks(rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each block, and the block, padded with zeros: all compile to one shape."""
    for start in range(0, len(rows), size):
        yield start, _padded(rows[start : start + size], size)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return rows if len(rows) == size else np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _check_finite(name: str, rows: np.ndarray, size: int) -> None:
    blocks = (block for _, block in _blocks(rows, size))
    if num_bad := sum(_pool().map(lambda block: int(_num_not_finite(block)), blocks)):
        raise ValueError(
            f"{num_bad} of the {len(rows)} rows of the {name} hold NaN or inf, or their length is "
            "beyond float32: has the encoder diverged?"
        )


@jax.jit
def _num_not_finite(rows):
    return jnp.sum(~jnp.isfinite(norm(rows.astype(jnp.float32))))


@partial(jax.jit, static_argnames="group")
def _similarities(query, bank, *, group):
    """Cosines of queries [Q, F] and unit rows [N, F], and the highest of every group of rows.

    Returns:
      (similarity [Q, N / group, group], highest [Q, N / group]).
    """
    similarity = jnp.matmul(unit_rows(query), bank.T, precision=jax.lax.Precision.HIGHEST)
    similarity = similarity.reshape(len(query), -1, group)
    return similarity, jnp.max(similarity, axis=2)


@jax.jit
def _merge(best, tiles, first_row, num_rows, own_row):
    """Lets a block of the bank compete with the best of the blocks before it.

    The k best rows lie in the k groups whose maxima are the highest, so only these groups are
    looked into: a top-k of maxima and one of candidates cost less than one of all rows. That
    holds for ties too, since groups are of successive rows and the lowest comes first. Two groups
    more are looked into, since two may stand too high: the one that holds the query itself, and
    the one where the padding begins. (Masking all rows before the maxima would be a third of the
    matrix product's time.)

    Args:
      best: (similarity, index), each [Q, k].
      tiles: of _similarities, for successive rows of the bank, as many in each.
      first_row: place of the block in the bank.
      num_rows: how many of the block's rows are no padding.
      own_row: row of the block that is each query, [Q], if it is one of its rows; or None.

    Returns:
      (similarity, index), each [Q, k].
    """
    num_queries, k = best[0].shape
    group = tiles[0][0].shape[2]
    highest = jnp.concatenate([of_tile for _, of_tile in tiles], axis=1)
    is_padding = group * jnp.arange(highest.shape[1])[None] >= num_rows
    highest = jnp.where(is_padding, -jnp.inf, highest)
    _, groups = jax.lax.top_k(highest, min(k + 2, highest.shape[1]))
    groups = jnp.sort(groups, axis=1)[:, :, None]  # of equal candidates the lowest row first

    similarity = _of_groups([of_tile for of_tile, _ in tiles], groups).reshape(num_queries, -1)
    row = (group * groups + jnp.arange(group)[None, None]).reshape(similarity.shape)
    is_barred = row >= num_rows
    if own_row is not None:
        is_barred |= row == own_row[:, None]
    similarity = jnp.where(is_barred, -jnp.inf, similarity)

    similarity, place = jax.lax.top_k(jnp.concatenate([best[0], similarity], axis=1), k)
    index = jnp.concatenate([best[1], first_row + row], axis=1)
    return similarity, jnp.take_along_axis(index, place, axis=1, mode="promise_in_bounds")


def _of_groups(tiles, groups):
    """Similarities of the groups [Q, G, 1], each from the tile that holds it: [Q, G, group]."""
    num_groups = tiles[0].shape[1]
    found = jnp.zeros(())
    for number, tile in enumerate(tiles):
        place = jnp.clip(groups - number * num_groups, 0, num_groups - 1)
        similarity = jnp.take_along_axis(tile, place, axis=1, mode="promise_in_bounds")
        found = jnp.where(groups // num_groups == number, similarity, found)
    return found


def knn_scores(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    query: np.ndarray,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    leave_one_out: bool = False,
) -> np.ndarray:
    """Votes of the k most similar images of a bank for each class.

    Args:
      bank: embeddings with known labels, [N, F]; normalised here.
      bank_labels: int [N], from 0 to num_classes - 1.
      query: embeddings to classify, [Q, F]; normalised here.
      k: neighbours, from 1 to N (to N - 1 with leave_one_out).
      temperature: a neighbour's vote weighs exp(cosine / temperature).
      num_classes: C.
      leave_one_out: the query is the bank, and no image votes for itself.

    Returns:
      Scores, float32 [Q, C]; the prediction is their argmax.

    Raises:
      ValueError: where k is larger than the bank, or an embedding is not finite.

    Source: Wu et al., CVPR 2018 (arXiv 1805.01978), section 3.4.
    """
    similarity, index = neighbours(bank, query, k, leave_one_out=leave_one_out)
    return np.concatenate(
        list(_votes(similarity, bank_labels[index], temperature, num_classes=num_classes))
    )


def _votes(
    similarity: np.ndarray, labels: np.ndarray, temperature: float, *, num_classes: int
) -> Iterator[np.ndarray]:
    """Scores of each block of queries, float32 [VOTE_BLOCK or fewer, C]."""
    for start in range(0, len(labels), VOTE_BLOCK):
        block = labels[start : start + VOTE_BLOCK]  # [Q, k]
        weights = np.exp(similarity[start : start + VOTE_BLOCK] / temperature)
        bins = np.arange(len(block))[:, None] * num_classes + block
        votes = np.bincount(bins.ravel(), weights.ravel(), len(block) * num_classes)
        yield votes.astype(np.float32).reshape(len(block), num_classes)


def knn_top1(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    *,
    k: int,
    temperature: float,
    leave_one_out: bool = False,
) -> float:
    """Share of queries that the k-NN classifier gets right.

    Args:
      bank: embeddings with known labels, [N, F].
      bank_labels: int [N].
      query: embeddings to classify, [Q, F].
      query_labels: int [Q].
      k: neighbours.
      temperature: of the votes.
      leave_one_out: the query is the bank, and no image votes for itself.

    Returns:
      Top-1 accuracy in [0, 1].

    Raises:
      ValueError: where k is larger than the bank, or an embedding is not finite.
    """
    return knn_top1_by_k(
        bank,
        bank_labels,
        query,
        query_labels,
        ks=(k,),
        temperature=temperature,
        leave_one_out=leave_one_out,
    )[0]


def knn_top1_by_k(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperature: float,
    leave_one_out: bool = False,
) -> list[float]:
    """`knn_top1` for several k, at the cost of the largest.

    Args:
      bank: embeddings with known labels, [N, F].
      bank_labels: int [N].
      query: embeddings to classify, [Q, F].
      query_labels: int [Q].
      ks: numbers of neighbours, at least one.
      temperature: of the votes.
      leave_one_out: the query is the bank, and no image votes for itself.

    Returns:
      Top-1 accuracy in [0, 1] for each k, in the order of ks.

    Raises:
      ValueError: where a k is larger than the bank, or an embedding is not finite.
    """
    num_classes = int(max(bank_labels.max(), query_labels.max())) + 1
    similarity, index = neighbours(bank, query, max(ks), leave_one_out=leave_one_out)
    labels = bank_labels[index]  # [Q, max(ks)]
    top1 = []
    for k in ks:
        votes = _votes(similarity[:, :k], labels[:, :k], temperature, num_classes=num_classes)
        predictions = np.concatenate([block.argmax(axis=1) for block in votes])
        top1.append(float(np.mean(predictions == query_labels)))
    return top1
