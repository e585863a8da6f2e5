"""The train state and the train step: the algorithm box of every method."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from gsg_jax.data.augment import ViewRecipe, make_views
from gsg_jax.evaluation.collapse import effective_rank, projection_std
from gsg_jax.methods.base import LossFn, Memory, Metrics, Outputs
from gsg_jax.models.siamese import Siamese
from gsg_jax.optim import is_below

MEMORY_STREAM = 2**32 - 1  # of the seed's keys; no step reaches it
DROP_PATH_STREAM = 2**32 - 1  # of a step's keys; the views and the loss have 0 and 1


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: steps done, int32 scalar; with the seed it gives the keys of the next one.
      params: of the online branch, {backbone, projector, predictor}.
      batch_stats: running BatchNorm statistics of the online branch, with the groups of params;
        {} in a group without BatchNorm.
      target_params: EMA of the online backbone and projector; {} where the target is online.
      target_batch_stats: the target branch's own running statistics; {} likewise.
      opt_state: of the optimizer.
      memory: the method's own state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    target_params: Any
    target_batch_stats: Any
    opt_state: optax.OptState
    memory: Memory


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that stays the same from step to step; static under `jit`.

    Attributes:
      online: the online branch.
      target: the target branch's module: the same without a predictor.
      has_ema_target: whether the target branch has weights of its own.
      ema_decay: target <- ema_decay x target + (1 - ema_decay) x online.
      loss: (outputs, memory, key) -> (loss, memory, metrics).
      init_memory: key -> the method's memory.
      optimizer: of the online parameters.
      frozen: paths of the parameters that no step moves.
      views: how a view is drawn.
      num_views: views an image, V.
      seed: of all randomness.
      figures_every_steps: how often the collapse figures are computed; NaN in between.
    """

    online: Siamese
    target: Siamese
    has_ema_target: bool
    ema_decay: float
    loss: LossFn
    init_memory: Any
    optimizer: optax.GradientTransformation
    views: ViewRecipe
    num_views: int
    seed: int
    figures_every_steps: int
    frozen: tuple[tuple[str, ...], ...] = ()


def init_state(experiment: Experiment, channels: int) -> TrainState:
    """Draws the parameters; an EMA target starts as a copy of them.

    Args:
      experiment: the static parts.
      channels: of the images, C.

    Returns:
      The state before the first step.
    """
    size = experiment.views.size
    images = jnp.zeros((2 * experiment.num_views, size, size, channels))
    key = jax.random.key(experiment.seed)
    variables = experiment.online.init(key, images, train=True)
    params = variables["params"]
    batch_stats = _running_statistics(variables, params)
    target_params, target_batch_stats = {}, {}
    if experiment.has_ema_target:
        target_params = jax.tree.map(jnp.copy, _without_predictor(params))
        target_batch_stats = jax.tree.map(jnp.copy, _without_predictor(batch_stats))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        target_params=target_params,
        target_batch_stats=target_batch_stats,
        opt_state=experiment.optimizer.init(params),
        memory=experiment.init_memory(jax.random.fold_in(key, MEMORY_STREAM)),
    )


def train_step(
    experiment: Experiment, state: TrainState, images: jax.Array
) -> tuple[TrainState, Metrics]:
    """One step: views -> outputs -> loss -> gradient -> update -> EMA -> state.

    Pure, and knows no devices: under `jit` on global arrays its means span them all.

    Args:
      experiment: the static parts.
      state: before the step.
      images: uint8 [B, H, W, C], or crops cut by the host [B, V, size, size, C].

    Returns:
      (state, metrics): the state after the step, and scalars: loss, grad_norm, projection_std,
      embedding_rank (both NaN between the logged steps), and the method's own.
    """
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
    view_key, loss_key = jax.random.split(key)
    drop_path_key = jax.random.fold_in(key, DROP_PATH_STREAM)
    views = make_views(images, view_key, experiment.views, experiment.num_views)
    z_target, target_batch_stats = _target_pass(experiment, state, views)

    def loss_fn(params):
        outputs, batch_stats = _online_pass(
            experiment, params, state.batch_stats, views, z_target, drop_path_key
        )
        loss, memory, metrics = experiment.loss(outputs, state.memory, loss_key)
        return loss, (batch_stats, memory, metrics, outputs)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (batch_stats, memory, metrics, outputs)), grads = gradient(state.params)

    updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    target_params = update_ema(state.target_params, params, experiment.ema_decay, experiment.frozen)

    state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        target_params=target_params,
        target_batch_stats=target_batch_stats,
        opt_state=opt_state,
        memory=memory,
    )
    figures = _collapse_figures(outputs, state.step % experiment.figures_every_steps == 0)
    return state, {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics, **figures}


def update_ema(
    target_params: Any, params: Any, decay: float, frozen: tuple[tuple[str, ...], ...] = ()
) -> Any:
    """Moves the target's parameters toward the online ones.

    Args:
      target_params: {backbone, projector}, or {} where the target is online.
      params: of the online branch, with or without a predictor.
      decay: in [0, 1]; 1 leaves the target as it is.
      frozen: paths of the parameters that stay as they are: rounding alone would move them.

    Returns:
      decay x target + (1 - decay) x online, a tree like target_params.
    """
    online = {group: params[group] for group in target_params}

    def moved(path, t, o):
        return t if is_below(path, frozen) else decay * t + (1 - decay) * o

    return jax.tree_util.tree_map_with_path(moved, target_params, online)


def _target_pass(experiment: Experiment, state: TrainState, views: jax.Array):
    """Target projections [V, B, D] without gradient, or None where the target is online."""
    if not experiment.has_ema_target:
        return None, {}
    variables = {"params": state.target_params, "batch_stats": state.target_batch_stats}
    (_, z, _), updates = experiment.target.apply(
        variables, views, train=True, mutable=["batch_stats"]
    )
    target_batch_stats = _running_statistics(updates, state.target_params)
    return _views_first(z, experiment.num_views), target_batch_stats


def _online_pass(
    experiment: Experiment, params, batch_stats, views: jax.Array, z_target, drop_path_key
):
    """Outputs of the online branch, views first, and its new running statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    branch, updates = experiment.online.apply(
        variables, views, train=True, mutable=["batch_stats"], rngs={"drop_path": drop_path_key}
    )
    h, z, p = (_views_first(x, experiment.num_views) for x in branch)
    outputs = Outputs(h=h, z=z, p=p, z_target=z if z_target is None else z_target)
    return outputs, _running_statistics(updates, params)


def _running_statistics(variables: Any, params: Any) -> Any:
    """Those of every group of the branch; Flax leaves out a group that has no BatchNorm."""
    return {group: variables.get("batch_stats", {}).get(group, {}) for group in params}


def _views_first(x: jax.Array, num_views: int) -> jax.Array:
    """[B x V, D], images first, to [V, B, D]."""
    return x.reshape(-1, num_views, x.shape[-1]).swapaxes(0, 1)


def _without_predictor(tree: Any) -> Any:
    return {group: leaves for group, leaves in tree.items() if group != "predictor"}


def _collapse_figures(outputs: Outputs, wanted: jax.Array) -> Metrics:
    h, z = jax.lax.stop_gradient((outputs.h, outputs.z))
    projection, rank = jax.lax.cond(
        wanted,
        lambda: (projection_std(z), effective_rank(h[0])),
        lambda: (jnp.float32(jnp.nan), jnp.float32(jnp.nan)),
    )
    return {"projection_std": projection, "embedding_rank": rank}
