"""The k-nearest-neighbour classifier: how good are embeddings without training anything?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gsg_jax.similarity import normalize

QUERY_BLOCK = 256


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
      ValueError: where k is larger than the bank.

    Source: Wu et al., CVPR 2018 (arXiv 1805.01978), section 3.4.
    """
    if k > len(bank) - leave_one_out:
        raise ValueError(f"k is {k}, the bank has {len(bank)} images: take a smaller k")
    bank = normalize(jnp.asarray(bank, jnp.float32))
    labels = jnp.asarray(bank_labels, jnp.int32)
    score = partial(_block_scores, k=k, temperature=temperature, num_classes=num_classes)
    scores = []
    for start in range(0, len(query), QUERY_BLOCK):
        block = normalize(jnp.asarray(query[start : start + QUERY_BLOCK], jnp.float32))
        itself = start + jnp.arange(len(block)) if leave_one_out else jnp.full(len(block), -1)
        scores.append(np.asarray(score(bank, labels, block, itself)))
    return np.concatenate(scores)


@partial(jax.jit, static_argnames=("k", "temperature", "num_classes"))
def _block_scores(bank, labels, query, itself, *, k, temperature, num_classes):
    similarity = jnp.matmul(query, bank.T, precision=jax.lax.Precision.HIGHEST)  # [Q, N]
    is_itself = jnp.arange(bank.shape[0])[None, :] == itself[:, None]
    similarity, neighbours = jax.lax.top_k(jnp.where(is_itself, -jnp.inf, similarity), k)
    weights = jnp.exp(similarity / temperature)  # [Q, k]
    classes = jax.nn.one_hot(labels[neighbours], num_classes)  # [Q, k, C]
    return jnp.sum(weights[:, :, None] * classes, axis=1)


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
    """
    num_classes = int(max(bank_labels.max(), query_labels.max())) + 1
    scores = knn_scores(
        bank,
        bank_labels,
        query,
        k=k,
        temperature=temperature,
        num_classes=num_classes,
        leave_one_out=leave_one_out,
    )
    return float(np.mean(scores.argmax(axis=1) == query_labels))
