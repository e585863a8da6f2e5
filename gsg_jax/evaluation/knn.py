"""The k-nearest-neighbour classifier: how good are embeddings without training anything?"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gsg_jax.console import say
from gsg_jax.methods.similarity import NORM_FLOOR

# (unit rows of a bank [B, F], unit queries [Q, F], k) -> (similarity, row), [Q, k] each: the k
# highest inner products of each query, from the highest down.
Search = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]

BLOCK_ROWS = 2**16  # rows at once, or fewer if they are wide
BLOCK_NUMBERS = 2**26  # numbers of a block at most: 256 MiB
CPU_QUERIES, CPU_ROWS = 1024, 4096  # in one matrix product on a CPU: its result stays in the cache
DEVICE_QUERIES = VOTE_QUERIES = 1024  # compared with a block, or counted for all classes, at once


def neighbours(
    bank: np.ndarray, query: np.ndarray, k: int, *, leave_one_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of a bank that are most similar to each query, by cosine; exact.

    Unit rows are searched block by block, so an np.memmap may be larger than the memory of host and
    device.

    Args:
      bank: embeddings of any length and float type, [N, F].
      query: embeddings, [Q, F].
      k: neighbours, from 1 to N (to N - 1 with leave_one_out).
      leave_one_out: the query is the bank, and no row is its own neighbour.

    Returns:
      (similarity, index), float32 and int32 [Q, k]: cosines in [-1, 1] from the highest down, and
      the rows of the bank they belong to. Equal cosines come in no fixed order.

    Raises:
      ValueError: if k is larger than the bank, or a row is not finite.
    """
    if k > len(bank) - leave_one_out:
        raise ValueError(f"k is {k}, the bank has {len(bank)} images: take a smaller k")
    search = search_on_cpu if jax.default_backend() == "cpu" else search_on_device
    block = max(1, min(BLOCK_ROWS, BLOCK_NUMBERS // bank.shape[1]))
    found = blocked_neighbours(bank, query, k + leave_one_out, search=search, block=block)
    if not leave_one_out:
        return found
    is_other = found[1] != np.arange(len(bank))[:, None]
    is_other[is_other.all(axis=1), -1] = False  # k + 1 others equal the query: one too many
    return tuple(x[is_other].reshape(len(bank), k) for x in found)


def blocked_neighbours(
    bank: np.ndarray, query: np.ndarray, k: int, *, search: Search, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """`neighbours` by a given search, whose blocks have at most `block` rows."""
    bank_lengths = _finite_lengths("bank", bank, block)
    query_lengths = _finite_lengths("query", query, block)
    similarity, index = np.empty((len(query), k), np.float32), np.empty((len(query), k), np.int32)
    for start in range(0, len(query), block):
        here = slice(start, start + block)
        unit_queries = _unit(query[here], query_lengths[here])
        best = ()
        for first_row in range(0, len(bank), block):
            there = slice(first_row, first_row + block)
            unit_rows = _unit(bank[there], bank_lengths[there])
            found, row = search(unit_rows, unit_queries, min(k, len(unit_rows)))
            found = found, first_row + row
            best = _merged(best, found, k) if best else found
        similarity[here], index[here] = best
    return similarity, index


def search_on_cpu(bank: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Searches by XLA's matrix products, tile by tile; faiss keeps the best in heaps.

    faiss's flat index does both, but its products took over three times the processor time.
    """
    import faiss  # half a second that only a search needs

    similarity, index = np.empty((len(query), k), np.float32), np.empty((len(query), k), np.int64)
    for start in range(0, len(query), CPU_QUERIES):
        queries = query[start : start + CPU_QUERIES]
        heaps = faiss.float_minheap_array_t()
        heaps.nh, heaps.k = len(queries), k
        heaps.val = faiss.swig_ptr(similarity[start : start + CPU_QUERIES])
        heaps.ids = faiss.swig_ptr(index[start : start + CPU_QUERIES])
        heaps.heapify()
        for first_row in range(0, len(bank), CPU_ROWS):
            rows = bank[first_row : first_row + CPU_ROWS]
            products = np.ascontiguousarray(_products(queries, rows))
            heaps.addn(len(rows), faiss.swig_ptr(products), first_row)
        heaps.reorder()
    return similarity, index


def search_on_device(bank: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Searches by a matrix product and top-k, on JAX's default device."""
    return jax.device_get(_top_k(bank, query, k=k))


@jax.jit
def _products(query, bank):
    return jnp.matmul(query, bank.T, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="k")
def _top_k(bank, query, *, k):
    def nearest(row):
        return jax.lax.top_k(jnp.matmul(bank, row, precision=jax.lax.Precision.HIGHEST), k)

    return jax.lax.map(nearest, query, batch_size=DEVICE_QUERIES)


def _finite_lengths(name: str, rows: np.ndarray, block: int) -> np.ndarray:
    """Lengths of rows, float32 [N]; a ValueError counts those that are not finite."""
    lengths = np.empty(len(rows), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), block):
            part = rows[start : start + block].astype(np.float32, copy=False)
            lengths[start : start + block] = np.sqrt(np.vecdot(part, part))
    if num_bad := np.count_nonzero(~np.isfinite(lengths)):
        raise ValueError(
            f"{num_bad} of the {len(rows)} rows of the {name} hold NaN or inf, or their length is "
            "beyond float32: has the encoder diverged?"
        )
    return lengths


def _unit(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float32; their lengths are clamped as in `normalize`."""
    unit = rows.astype(np.float32, order="C")
    unit /= np.maximum(lengths, NORM_FLOOR)[:, None]
    return unit


def _merged(best: tuple, found: tuple, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of two lists of (similarity, index), or all if there are fewer."""
    similarity, index = (np.concatenate(both, axis=1) for both in zip(best, found, strict=True))
    order = np.argsort(-similarity, axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(index, order, axis=1)


def cut_to_bank(ks: Sequence[int], num_voters: int) -> tuple[int, ...]:
    """Numbers of neighbours that a bank allows; warns if it does not allow all.

    Args:
      ks: those that are asked for.
      num_voters: images that can vote on one image.

    Returns:
      The numbers, none larger than num_voters, each once.

    Raises:
      ValueError: if no image can vote.
    """
    if num_voters < 1:
        raise ValueError("the only image cannot vote on itself: give two labelled images or more")
    if max(ks) > num_voters:
        say(f"warning: eval.knn_k is {max(ks)}, {num_voters} images can vote: k {num_voters}")
    return tuple(dict.fromkeys(min(k, num_voters) for k in ks))


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
    """Votes of the `neighbours` of each query for each class; the prediction is their argmax.

    Args:
      bank: embeddings with known labels, [N, F].
      bank_labels: int [N], from 0 to num_classes - 1.
      query: embeddings to classify, [Q, F].
      k: neighbours.
      temperature: a neighbour's vote weighs exp(cosine / temperature).
      num_classes: C.
      leave_one_out: the query is the bank, and no image votes for itself.

    Returns:
      Scores, float32 [Q, C].

    Source: Wu et al., CVPR 2018 (arXiv 1805.01978), section 3.4.
    """
    similarity, index = neighbours(bank, query, k, leave_one_out=leave_one_out)
    return np.concatenate(list(_votes(similarity, bank_labels[index], temperature, num_classes)))


def _votes(similarity, labels, temperature, num_classes) -> Iterator[np.ndarray]:
    """Scores of each block of queries, float32 [VOTE_QUERIES or fewer, C]."""
    for start in range(0, len(labels), VOTE_QUERIES):
        block = labels[start : start + VOTE_QUERIES]  # [Q, k]
        weights = np.exp(similarity[start : start + VOTE_QUERIES] / temperature)
        bins = np.arange(len(block))[:, None] * num_classes + block
        votes = np.bincount(bins.ravel(), weights.ravel(), len(block) * num_classes)
        yield votes.astype(np.float32).reshape(len(block), num_classes)


def knn_top1(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperature: float,
    leave_one_out: bool = False,
) -> list[float]:
    """Share of queries that `knn_scores` gets right, in [0, 1], for several k in one search.

    `query_labels` are int [Q]; the arguments of the same name are those of knn_scores.
    """
    num_classes = int(max(bank_labels.max(), query_labels.max())) + 1
    similarity, index = neighbours(bank, query, max(ks), leave_one_out=leave_one_out)
    labels, top1 = bank_labels[index], []  # [Q, max(ks)]
    for k in ks:
        votes = _votes(similarity[:, :k], labels[:, :k], temperature, num_classes)
        predictions = np.concatenate([block.argmax(axis=1) for block in votes])
        top1.append(float(np.mean(predictions == query_labels)))
    return top1
