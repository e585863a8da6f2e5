"""The train step of every method. Read this file first.

    views -> outputs -> loss -> gradient -> update -> EMA -> state

The losses are in gsg_jax/methods. Beside this file: state.py has the state and the static
experiment, views.py draws the views, branches.py runs the two branches, build.py makes an
experiment from a config, and loop.py repeats the step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gsg_jax.methods.method import Metrics
from gsg_jax.train.branches import online_pass, target_pass
from gsg_jax.train.figures import step_figures
from gsg_jax.train.online_probe import probe_gradient
from gsg_jax.train.optim import is_below
from gsg_jax.train.state import Experiment, TrainState, is_finite, skipped_steps, step_keys
from gsg_jax.train.views import draw_views, only_sources


def train_step(
    experiment: Experiment,
    state: TrainState,
    images: jax.Array | tuple[jax.Array, jax.Array],
    labels: jax.Array | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of any method.

    It is pure and device-independent: under `jit` on global arrays its means span all devices.

    Args:
      experiment: the static parts.
      state: before the step.
      images: uint8 [B, H, W, C], or crops cut by the host [B, G, size, size, C]; with local views
        a pair of these and their crops [B, L, local_size, local_size, C].
      labels: int32 [B], -1 if unknown; read by the online probe only.

    Returns:
      (state, metrics): the state after the step (a skipped step changes `step` only), and scalars:
      loss, grad_norm, FIGURES, what the method and the probe log, and skipped_steps if bad steps
      are skipped.
    """
    view_key, loss_key, drop_path_key = step_keys(experiment.seed, state.step)
    views = draw_views(experiment, images, view_key)
    z_target, target_batch_stats = target_pass(experiment, state, views.whole)
    if experiment.select:
        views = only_sources(views, experiment.select(z_target, loss_key))

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, batch_stats = online_pass(experiment, variables, views, z_target, drop_path_key)
        loss, memory, metrics = experiment.loss(outputs, state.memory, loss_key)
        return loss, (outputs, batch_stats, memory, metrics)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (outputs, batch_stats, memory, metrics)), grads = gradient(state.params)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
    if experiment.probe:
        h = outputs.h[: experiment.num_sources]
        grads["probe"], logs = probe_gradient(experiment.probe, state.params["probe"], h, labels)
        metrics |= logs

    metrics |= step_figures(experiment, state, outputs, loss_key)
    del metrics["attraction"]  # for the gradient figures, not for the log
    updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay, frozen = experiment.ema_decay(state.step), experiment.frozen
    after = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        target_params=update_ema(state.target_params, params, decay, frozen),
        target_batch_stats=target_batch_stats,
        opt_state=opt_state,
        memory=memory,
    )
    if experiment.skips_bad_steps:
        after = _unless_bad(experiment, state, after, metrics)
        metrics["skipped_steps"] = skipped_steps(after)
    return after, metrics


def update_ema(
    target_params: Any, params: Any, decay: float, frozen: tuple[tuple[str, ...], ...] = ()
) -> Any:
    """Returns decay x target + (1 - decay) x online, a tree like target_params.

    Args:
      target_params: {backbone, projector}, or {} if the target is online.
      params: of the online branch, with or without a predictor.
      decay: in [0, 1]; 1 leaves the target as it is.
      frozen: paths of parameters to keep as they are: rounding alone would move them.
    """
    online = {group: params[group] for group in target_params}

    def moved(path, t, o):
        return t if is_below(path, frozen) else decay * t + (1 - decay) * o

    return jax.tree_util.tree_map_with_path(moved, target_params, online)


def _unless_bad(
    experiment: Experiment, before: TrainState, after: TrainState, metrics: Metrics
) -> TrainState:
    """The state after a good step, or the state before a bad one, with the step counted."""
    is_good = is_finite((metrics["loss"], metrics["grad_norm"], after))
    if experiment.grad_norm_limit:
        is_good &= metrics["grad_norm"] <= experiment.grad_norm_limit
    kept = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), after, before)
    return kept.replace(step=after.step)
