"""Groups of nearly equal images, and how close each image is to others, by embeddings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gsg_jax.evaluation.knn import neighbours
from gsg_jax.methods.similarity import normalize

BLOCK = 2048  # rows against as many others at once: 16 MiB of similarities
ROUNDING = 1e-6  # equal embeddings may have a cosine this far from 1


class Groups(NamedTuple):
    """Images that are joined by similarity.

    Attributes:
      rows: of each group, two or more, int [n], sorted; the largest group first, of equally large
        ones that with the lowest row.
      closest: float32 [N], the highest similarity to another image if it reaches the threshold,
        else -1.
    """

    rows: list[np.ndarray]
    closest: np.ndarray


def similar_groups(h: np.ndarray, threshold: float) -> Groups:
    """Joins any two embeddings whose cosine reaches a threshold, and transitively their groups.

    Exact. Half of the pairs are compared, block by block: memory grows with the number of images,
    not of pairs.

    Args:
      h: embeddings, finite, float [N, F].
      threshold: from 0.01 to 1; cosines below it by rounding (1e-6) count too.

    Returns:
      The groups.

    Raises:
      ValueError: if an embedding is not finite.
    """
    if not np.isfinite(h).all():
        raise ValueError("an embedding holds NaN or inf: has the encoder diverged?")
    num_blocks = -(-len(h) // BLOCK)
    size = -(-len(h) // num_blocks)
    group = np.arange(len(h), dtype=np.int32)  # images with equal numbers are joined
    closest = np.full(len(h), -1, np.float32)
    for first in range(0, len(h), size):
        for other_first in range(first, len(h), size):
            here, there = slice(first, first + size), slice(other_first, other_first + size)
            is_linked, of_here, of_there = _links(
                *(_padded(part[block], size) for part in (h, group) for block in (here, there)),
                threshold - ROUNDING,
                first == other_first,
            )
            for part, highest in ((closest[here], of_here), (closest[there], of_there)):
                np.maximum(part, np.asarray(highest)[: len(part)], out=part)
            rows, columns = np.nonzero(is_linked)
            if len(rows):
                group = _joined(group, first + rows, other_first + columns)
    return Groups(_by_size(group), closest)


def nearest_mean(h: np.ndarray, k: int) -> np.ndarray:
    """How close each of N images is to the others: the mean cosine of its k nearest, float32 [N].

    Raises:
      ValueError: if k exceeds N - 1, or an embedding is not finite.
    """
    similarity, _ = neighbours(h, h, k, leave_one_out=True)
    return similarity.mean(axis=1)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, [(0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)])


@jax.jit
def _links(rows, others, group, other_group, threshold, is_same):
    """Pairs [Q, B] that join two groups, and the highest similarity of each row and each column.

    Similarities below the threshold count as -1, as do those of a row to itself and of padding.
    """
    rows, others = (normalize(part.astype(jnp.float32)) for part in (rows, others))
    similarity = jnp.matmul(rows, others.T, precision=jax.lax.Precision.HIGHEST)
    is_itself = is_same & jnp.eye(len(rows), dtype=bool)
    similarity = jnp.where((similarity >= threshold) & ~is_itself, similarity, -1.0)
    is_linked = (similarity > -1) & (group[:, None] != other_group[None, :])
    return is_linked, similarity.max(axis=1), similarity.max(axis=0)


def _joined(group: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The groups after joining those of rows[i] and columns[i]."""
    links = coo_array(
        (np.ones(len(rows), bool), (group[rows], group[columns])), (len(group), len(group))
    )
    _, component = connected_components(links, directed=False)
    return component[group].astype(np.int32)


def _by_size(group: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    joined = [part for part in parts if len(part) > 1]
    return sorted(joined, key=lambda part: (-len(part), part[0]))
