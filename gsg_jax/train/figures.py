"""Figures of a step besides its loss: collapse, and the parts of the gradient."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax

from gsg_jax.methods.diagnostics import (
    GRADIENT_FIGURES,
    effective_rank,
    gradient_figures,
    projection_std,
)
from gsg_jax.methods.method import Metrics, Outputs
from gsg_jax.models.siamese import Siamese
from gsg_jax.train.branches import images_first, views_first, with_targets
from gsg_jax.train.state import Experiment, TrainState

COLLAPSE_FIGURES = ("projection_std", "embedding_rank")
FIGURES = (*COLLAPSE_FIGURES, *GRADIENT_FIGURES)  # NaN between the logged steps


def step_figures(
    experiment: Experiment, state: TrainState, outputs: Outputs, key: jax.Array
) -> Metrics:
    """Computes FIGURES at logged steps; NaN at the others.

    Args:
      experiment: the static parts; without inspects_gradients only COLLAPSE_FIGURES are returned.
      state: before the step's update.
      outputs: of the step.
      key: the loss's key of the step.
    """
    outputs = jax.lax.stop_gradient(outputs)
    z = outputs.z[: experiment.num_sources]

    def compute():
        figures = {
            "projection_std": projection_std(z),
            "embedding_rank": effective_rank(outputs.h[0]),
        }
        if experiment.inspects_gradients:
            figures |= gradient_figures(
                experiment.loss,
                partial(outputs_of_projections, experiment, state, outputs),
                outputs.z,
                state.memory,
                key,
            )
        return figures

    def leave_out():
        names = FIGURES if experiment.inspects_gradients else COLLAPSE_FIGURES
        return {name: jnp.float32(jnp.nan) for name in names}

    is_logged = (state.step + 1) % experiment.figures_every_steps == 0
    return jax.lax.cond(is_logged, compute, leave_out)


def logged_figures(
    metrics: Metrics, step: int, epoch: float, schedule: optax.Schedule, *, is_due: bool
) -> dict[str, float]:
    """Returns a logged step's line of metrics.jsonl, without times; the monitor's figures follow.

    Args:
      metrics: of the step.
      step: its number.
      epoch: at its end.
      schedule: of the learning rate.
      is_due: whether the step was due to compute FIGURES; else they are NaN, and left out.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    skipped = values.get("skipped_steps", 0)
    if "skipped_steps" in values:  # a skipped step's figures may be NaN
        values = {name: value for name, value in values.items() if math.isfinite(value)}
    values = {name: value for name, value in values.items() if is_due or name not in FIGURES}
    return {
        "epoch": epoch,
        **({"loss": values.pop("loss")} if "loss" in values else {}),
        "learning_rate": float(schedule(max(step - 1 - skipped, 0))),
        **values,
    }


def outputs_of_projections(
    experiment: Experiment, state: TrainState, outputs: Outputs, z: jax.Array
) -> Outputs:
    """The step's outputs as a function of the online projections [V, B, D]."""
    num_sources = experiment.num_sources
    p = _predict(experiment.online, state, z[:num_sources])
    if z.shape[0] > num_sources:
        p = jnp.concatenate([p, _predict(experiment.local, state, z[num_sources:])])
    z_whole = z[:num_sources] if outputs.mix is None else outputs.negatives
    return with_targets(experiment, outputs._replace(z=z, p=p), z_whole)


def _predict(branch: Siamese, state: TrainState, z: jax.Array) -> jax.Array:
    """Predictions of projections [V, B, D], with the weights before the update."""
    if branch.predictor is None:
        return z
    groups = {"params": state.params, "batch_stats": state.batch_stats}
    variables = {name: group["predictor"] for name, group in groups.items()}
    p, _ = branch.predictor.apply(variables, images_first(z), train=True, mutable=["batch_stats"])
    return views_first(p, z.shape[0])
