"""Logistic regression by L-BFGS: the linear classifier of the transfer protocol, at its optimum."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gsg_jax.evaluation.scores import Metric

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Fit(NamedTuple):
    """A linear classifier and how close it is to its optimum."""

    kernel: jax.Array  # [F, C]
    bias: jax.Array  # [C]
    num_steps: int  # max_steps if the tolerance was not reached
    gradient_norm: float


class Sweep(NamedTuple):
    """What a sweep of regularisations found."""

    l2: float  # of the best figure; the strongest among equals
    fit: Fit  # at that l2
    figures: np.ndarray  # [L], of the validation set, in the order of l2s
    fits: list[Fit]  # in the order of l2s


def softmax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy, a scalar, of logits [N, C] and labels [N] of one class each."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def binary_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum over the classes of their mean binary cross-entropy, a scalar.

    Args:
      logits: [N, C].
      labels: int [N, C]: 1 has the class, 0 has not, -1 does not count.
    """
    counts = labels >= 0
    entropy = optax.sigmoid_binary_cross_entropy(logits, labels)
    total = jnp.sum(jnp.where(counts, entropy, 0.0), axis=0)  # [C]
    return jnp.sum(total / jnp.maximum(jnp.sum(counts, axis=0), 1))


def objective(
    kernel: jax.Array,
    bias: jax.Array,
    features: jax.Array,
    labels: jax.Array,
    l2: jax.Array,
    loss: Loss = softmax_loss,
) -> jax.Array:
    """What every linear classifier minimises: loss + l2 / 2 x ||kernel||^2; the bias is free.

    Args:
      kernel: [F, C].
      bias: [C].
      features: [N, F].
      labels: as the loss takes them.
      l2: strength of the regularisation, a scalar, at least 0.
      loss: softmax_loss or binary_loss.

    Returns:
      A scalar, at least 0.
    """
    return loss(_logits(features, kernel, bias), labels) + l2 / 2 * jnp.sum(jnp.square(kernel))


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    l2: float,
    loss: Loss = softmax_loss,
    start: Fit | None = None,
    max_steps: int = 1000,
    tolerance: float = 1e-5,
) -> Fit:
    """Minimises the objective over all images at once.

    scikit-learn's LogisticRegression(C=c) has the same optimum at l2 = 1 / (c N).

    Args:
      features: [N, F], with channels of similar scale: see `standardize`. All are on the device,
        as float32.
      labels: as the loss takes them.
      num_classes: C.
      l2: strength of the regularisation, above 0.
      loss: softmax_loss or binary_loss.
      start: where to begin; None begins at zero.
      max_steps: of L-BFGS.
      tolerance: stops when the gradient's norm is at most this, with the kernel's gradient
        divided by sqrt(1 + l2).

    Returns:
      The classifier; its scores are `linear_scores`.

    Source: Liu & Nocedal, Mathematical Programming 1989.
    """
    weights = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
    if start is not None:
        weights = start.kernel, start.bias
    (kernel, bias), num_steps, gradient_norm = _minimise(
        weights,
        jnp.asarray(features, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.float32(l2),
        max_steps,
        tolerance,
        loss=loss,
    )
    return Fit(kernel, bias, int(num_steps), float(gradient_norm))


@partial(jax.jit, static_argnames="loss")
def _minimise(weights, features, labels, l2, max_steps, tolerance, *, loss):
    # If l2 is far above 1, the objective curves so much more along the kernel than along the bias
    # that L-BFGS crawls. It gets the kernel in units that make both curve alike.
    unit = 1 / jnp.sqrt(1 + l2)

    def scaled_objective(weights):
        return objective(weights[0] * unit, weights[1], features, labels, l2, loss)

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(scaled_objective)

    def is_unfinished(carry):
        _, _, _, gradient, num_steps = carry
        return (optax.tree.norm(gradient) > tolerance) & (num_steps < max_steps)

    def step(carry):
        weights, state, value, gradient, num_steps = carry
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=scaled_objective
        )
        weights = optax.apply_updates(weights, updates)
        # The line search has computed both already and left them in its state.
        value, gradient = value_and_gradient(weights, state=state)
        return weights, state, value, gradient, num_steps + 1

    weights = weights[0] / unit, weights[1]
    state = solver.init(weights)
    carry = weights, state, *value_and_gradient(weights, state=state), 0
    weights, _, _, gradient, num_steps = jax.lax.while_loop(is_unfinished, step, carry)
    return (weights[0] * unit, weights[1]), num_steps, optax.tree.norm(gradient)


def sweep(
    features: np.ndarray,
    labels: np.ndarray,
    val_features: np.ndarray,
    val_labels: np.ndarray,
    *,
    l2s: Sequence[float],
    metric: Metric,
    **options,
) -> Sweep:
    """Fits at every l2 and takes the one that is best on the validation set.

    The strongest comes first; each starts from the previous solution.

    Args:
      features: [N, F], with channels of similar scale.
      labels: as the loss takes them.
      val_features: [M, F], standardised like the features.
      val_labels: as the metric takes them.
      l2s: strengths of the regularisation, [L], in any order.
      metric: maps scores [M, C] and val_labels to a figure, higher is better.
      options: of `fit`.

    Returns:
      The best l2, its classifier, and the figures and classifiers of all.

    Source: Kornblith et al., CVPR 2019 (arXiv 1805.08974), appendix A; Chen et al., ICML 2020
    (arXiv 2002.05709), appendix B.8, which train once more on both sets with the best l2.
    """
    features = jnp.asarray(features, jnp.float32)
    val_features = jnp.asarray(val_features, jnp.float32)
    figures, fits, last = np.zeros(len(l2s)), [None] * len(l2s), None
    strongest_first = np.argsort(l2s)[::-1]
    for n in strongest_first:
        fits[n] = last = fit(features, labels, l2=l2s[n], start=last, **options)
        figures[n] = metric(linear_scores(val_features, last.kernel, last.bias), val_labels)
    best = max(strongest_first, key=lambda n: figures[n])
    return Sweep(l2s[best], fits[best], figures, fits)


def linear_scores(features: np.ndarray, kernel: jax.Array, bias: jax.Array) -> np.ndarray:
    """Logits, float32 [N, C], of features [N, F] by a kernel [F, C] and a bias [C]."""
    return np.asarray(_logits(jnp.asarray(features, jnp.float32), kernel, bias))


def _logits(features, kernel, bias):
    return jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST) + bias[None, :]
