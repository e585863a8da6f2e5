"""The linear probe on cached embeddings: a whole grid of classifiers trained at once by SGD."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gsg_jax.evaluation.logistic import linear_scores, objective
from gsg_jax.evaluation.scores import Metric
from gsg_jax.evaluation.splits import split_held_out


class Probes(NamedTuple):
    """P linear classifiers."""

    kernel: jax.Array  # [P, F, C]
    bias: jax.Array  # [P, C]


class ChosenProbe(NamedTuple):
    """The linear classifier of a grid that is best on the held-out images."""

    kernel: jax.Array  # [F, C]
    bias: jax.Array  # [C]
    learning_rate: float
    weight_decay: float
    held_out_figures: np.ndarray  # [learning rates, weight decays]; NaN if one diverged


def train_probes(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    num_epochs: int,
    batch_size: int,
    momentum: float,
    key: jax.Array,
) -> Probes:
    """Trains P linear classifiers on the same batches, by SGD with Nesterov momentum from zero.

    Probe p minimises the objective of `logistic.fit` with l2 = weight_decays[p]. The learning
    rates fall to zero by a cosine.

    Args:
      features: [N, F], with channels of similar scale: see `standardize`. All are on one device,
        as float32: ImageNet's 1.28 million of 2,048 channels take 10.5 GB of it.
      labels: int [N], from 0 to C - 1.
      num_classes: C.
      learning_rates: of each probe, per 256 images, [P].
      weight_decays: of each probe, [P], at least 0.
      num_epochs: each in a new order.
      batch_size: at most N is used. Images that fill no batch are left out of the epoch.
      momentum: in [0, 1).
      key: PRNG key of the orders.

    Returns:
      The probes; one that diverged holds NaN or infinity.
    """
    features = jnp.asarray(features, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    peaks = jnp.asarray(learning_rates, jnp.float32) * batch_size / 256
    decays = jnp.asarray(weight_decays, jnp.float32)
    shape = len(peaks), features.shape[1], num_classes
    probes = Probes(jnp.zeros(shape), jnp.zeros((shape[0], num_classes)))
    velocity = jax.tree.map(jnp.zeros_like, probes)
    for epoch in range(num_epochs):
        done = np.arange(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        share = done / (num_epochs * steps_per_epoch)
        cosine = jnp.float32(0.5 * (1 + np.cos(np.pi * share)))
        probes, velocity = _train_epoch(
            probes,
            velocity,
            features,
            labels,
            jax.random.fold_in(key, epoch),
            peaks[None, :] * cosine[:, None],
            decays,
            momentum,
            batch_size=batch_size,
        )
    return probes


@partial(jax.jit, static_argnames="batch_size", donate_argnums=(0, 1))
def _train_epoch(
    probes, velocity, features, labels, key, learning_rates, decays, momentum, *, batch_size
):
    order = jax.random.permutation(key, len(features))
    num_steps = len(learning_rates)
    batches = order[: num_steps * batch_size].reshape(num_steps, batch_size)
    # Not mapped over the images: XLA makes one product of the kernels of all P probes.
    gradients = jax.vmap(jax.grad(objective, argnums=(0, 1)), in_axes=(0, 0, None, None, 0))

    def step(carry, batch_and_rates):
        probes, velocity = carry
        batch, rates = batch_and_rates  # [B], [P]
        gradient = Probes(*gradients(*probes, features[batch], labels[batch], decays))
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        ahead = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        probes = Probes(
            probes.kernel - rates[:, None, None] * ahead.kernel,
            probes.bias - rates[:, None] * ahead.bias,
        )
        return (probes, velocity), None

    return jax.lax.scan(step, (probes, velocity), (batches, learning_rates))[0]


def select_probe(figures: np.ndarray, learning_rates: Sequence[float]) -> int:
    """Index of the highest figure [P]; among equals, that of the smallest learning rate [P].

    Raises:
      ValueError: if every figure is NaN, which never wins.
    """
    if np.isnan(figures).all():
        raise ValueError(
            f"all {len(figures)} probes diverged, the smallest learning rate was "
            f"{min(learning_rates):g}: take smaller ones, or standardize the features"
        )
    return int(np.lexsort((learning_rates, -np.asarray(figures)))[0])


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    held_out: float,
    metric: Metric,
    seed: int,
    **options,
) -> ChosenProbe:
    """Chooses learning rate and weight decay on held-out training images, then trains on all.

    Args:
      features: [N, F], as in train_probes.
      labels: int [N], from 0 to C - 1.
      learning_rates: to choose from, per 256 images.
      weight_decays: to choose from, with each learning rate; at least 0.
      held_out: share of each class to choose by, in (0, 1): see `split_held_out`.
      metric: maps scores [M, C] and labels [M] to a figure, higher is better.
      seed: of the split and of the orders.
      options: of train_probes, both times.

    Returns:
      The chosen probe, and the figures it was chosen by.

    Raises:
      ValueError: if no class has two images, or every probe or the chosen one diverged.
    """
    fitted, chooses = split_held_out(labels, held_out, seed)
    if not len(chooses):
        raise ValueError(f"none of the {len(labels)} images can be held out: give a class two")
    grid = np.array(list(itertools.product(learning_rates, weight_decays)))
    train = partial(train_probes, key=jax.random.key(seed), **options)
    probes = train(
        features[fitted], labels[fitted], learning_rates=grid[:, 0], weight_decays=grid[:, 1]
    )
    figures = _figures(probes, features[chooses], labels[chooses], metric)
    learning_rate, weight_decay = grid[select_probe(figures, grid[:, 0])].tolist()
    chosen = train(features, labels, learning_rates=[learning_rate], weight_decays=[weight_decay])
    if not _is_finite(chosen)[0]:
        raise ValueError(
            f"the probe of learning rate {learning_rate:g} diverged on all {len(labels)} images: "
            "take smaller ones, or standardize the features"
        )
    figures = figures.reshape(len(learning_rates), len(weight_decays))
    return ChosenProbe(chosen.kernel[0], chosen.bias[0], learning_rate, weight_decay, figures)


def _figures(probes, features, labels, metric):
    features = jnp.asarray(features, jnp.float32)
    return np.array(
        [
            metric(linear_scores(features, kernel, bias), labels) if is_finite else np.nan
            for kernel, bias, is_finite in zip(*probes, _is_finite(probes), strict=True)
        ]
    )


def _is_finite(probes):
    """Whether each probe is finite, [P]: one that has overflowed stays so."""
    return np.isfinite(probes.kernel).all(axis=(1, 2)) & np.isfinite(probes.bias).all(axis=1)
