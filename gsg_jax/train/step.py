"""The train state and the train step: the algorithm box of every method."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gsg_jax.data.augment import ViewRecipe, cutmix, make_local_views, make_views
from gsg_jax.methods.diagnostics import effective_rank, projection_std
from gsg_jax.methods.gradients import GRADIENT_FIGURES, gradient_figures
from gsg_jax.methods.method import CutMix, LossFn, Memory, Metrics, Outputs
from gsg_jax.models.siamese import Siamese
from gsg_jax.train.branches import images_first, run_branch, running_statistics, views_first
from gsg_jax.train.optim import is_below

MEMORY_STREAM = 2**32 - 1  # of the seed's keys; no step reaches it
LOCAL_STREAM, CUTMIX_STREAM = 0, 1  # of the views' key
DROP_PATH_STREAM = 2**32 - 1  # of a step's keys; the views and the loss have 0 and 1
# What is NaN between the logged steps.
FIGURES = ("projection_std", "embedding_rank", *GRADIENT_FIGURES)


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: steps done, int32 scalar; with the seed it gives the keys of the next one.
      params: of the online branch, {backbone, projector, predictor}, and of the online probe,
        {probe}, where there is one.
      batch_stats: running BatchNorm statistics of the online branch, with the groups of params;
        {} in a group without BatchNorm.
      target_params: EMA of the online backbone and projector; {} where there is no such target.
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
      local: the same for local views, whose number is another.
      target: the target branch's module: the same without a predictor.
      target_branch: one of TARGETS.
      ema_decay: decay of a step; target <- decay x target + (1 - decay) x online.
      loss: (outputs, memory, key) -> (loss, memory, metrics).
      init_memory: key -> the method's memory.
      optimizer: of the online parameters.
      frozen: paths of the parameters that no step moves.
      views: how a view is drawn.
      num_views: global views an image, G.
      num_sources: how many of them the online branch runs on, S: G, or those that are selected.
      select: (z_target, key) -> the selected views [S, B], or None.
      seed: of all randomness.
      figures_every_steps: how often the collapse figures are computed; NaN in between.
      inspects_gradients: whether the gradient's parts are among these figures.
      num_microbatches: parts that the backbone takes a batch in.
      skips_bad_steps: whether a step whose loss, gradient norm or state is not finite, or whose
        gradient norm is above grad_norm_limit, leaves the state as it was.
      grad_norm_limit: largest gradient norm of a step that is not skipped, 0 for none.
      probe: linear classifier trained beside, on embeddings without gradient, or None.
    """

    online: Siamese
    local: Siamese
    target: Siamese
    target_branch: str
    ema_decay: optax.Schedule
    loss: LossFn
    init_memory: Any
    optimizer: optax.GradientTransformation
    views: ViewRecipe
    num_views: int
    num_sources: int
    seed: int
    figures_every_steps: int
    select: Callable[..., jax.Array] | None = None
    inspects_gradients: bool = False
    num_microbatches: int = 1
    skips_bad_steps: bool = False
    grad_norm_limit: float = 0.0
    frozen: tuple[tuple[str, ...], ...] = ()
    probe: nn.Dense | None = None

    @property
    def has_ema_target(self) -> bool:
        """Whether the target branch has weights of its own."""
        return self.target_branch != "online"

    @property
    def has_target_pass(self) -> bool:
        """Whether targets come from a pass of their own, before the online branch's."""
        return self.has_ema_target or self.select is not None


class Views(NamedTuple):
    """What a step draws of its images; rows stand images first, views second.

    Attributes:
      whole: global views, [B x G, size, size, C].
      online: the same as the online branch gets them: with patches, where there is CutMix.
      local: local views, [B x L, local_size, local_size, C], or None.
      mix: what CutMix has done, or None.
      sources: which views the online branch gets, [S, B], where those are selected: `online` then
        has these alone.
    """

    whole: jax.Array
    online: jax.Array
    local: jax.Array | None
    mix: CutMix | None
    sources: jax.Array | None = None


def init_state(experiment: Experiment, channels: int) -> TrainState:
    """Draws the parameters; an EMA target starts as a copy of them.

    Args:
      experiment: the static parts.
      channels: of the images, C.

    Returns:
      The state before the first step.
    """
    size = experiment.views.size
    images = jnp.zeros((2 * experiment.num_sources, size, size, channels))
    key = jax.random.key(experiment.seed)
    variables = experiment.online.init(key, images, train=True)
    params = variables["params"]
    if experiment.probe:
        params = params | {"probe": _init_probe(experiment, images, variables, key)}
    batch_stats = running_statistics(variables, params)
    target_params, target_batch_stats = {}, {}
    if experiment.has_ema_target:
        target_params = jax.tree.map(jnp.copy, _of_target(params))
        target_batch_stats = jax.tree.map(jnp.copy, _of_target(batch_stats))
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
    experiment: Experiment,
    state: TrainState,
    images: jax.Array | tuple[jax.Array, jax.Array],
    labels: jax.Array | None = None,
) -> tuple[TrainState, Metrics]:
    """One step: views -> targets -> outputs -> loss -> gradient -> update -> EMA -> state.

    Pure, and knows no devices: under `jit` on global arrays its means span them all.

    Args:
      experiment: the static parts.
      state: before the step.
      images: uint8 [B, H, W, C], or crops cut by the host [B, G, size, size, C]; with local views
        a pair of these and their crops [B, L, local_size, local_size, C].
      labels: int32 [B], -1 where unknown; read by the online probe alone.

    Returns:
      (state, metrics): the state after the step, and scalars: loss, grad_norm, FIGURES (NaN between
      the logged steps; the gradient's where it is inspected), what the method and the online probe
      add and, where bad steps are skipped, skipped_steps: how many since the run began. The state
      after a skipped step is the one before it but for `step`.
    """
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
    view_key, loss_key = jax.random.split(key)
    drop_path_key = jax.random.fold_in(key, DROP_PATH_STREAM)
    views = draw_views(experiment, images, view_key)
    z_target, target_batch_stats = _target_pass(experiment, state, views.whole)
    if experiment.select:
        views = only_sources(views, experiment.select(z_target, loss_key))

    def loss_fn(params):
        outputs, batch_stats = _online_pass(
            experiment, params, state.batch_stats, views, z_target, drop_path_key
        )
        loss, memory, metrics = experiment.loss(outputs, state.memory, loss_key)
        return loss, (batch_stats, memory, metrics, outputs)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (batch_stats, memory, metrics, outputs)), grads = gradient(state.params)
    grad_norm = optax.tree.norm(grads)
    if experiment.probe:
        of_probe, figures_of_probe = _probe_gradient(experiment, state, outputs.h, labels)
        grads, metrics = grads | {"probe": of_probe}, metrics | figures_of_probe

    updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = experiment.ema_decay(state.step)
    target_params = update_ema(state.target_params, params, decay, experiment.frozen)

    figures = _figures(experiment, state, outputs, loss_key)
    logged = {name: value for name, value in metrics.items() if name != "attraction"}
    before, state = (
        state,
        TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            target_params=target_params,
            target_batch_stats=target_batch_stats,
            opt_state=opt_state,
            memory=memory,
        ),
    )
    if experiment.skips_bad_steps:
        state = _unless_bad(experiment, before, state, loss, grad_norm)
        logged["skipped_steps"] = skipped_steps(state)
    return state, {"loss": loss, "grad_norm": grad_norm, **logged, **figures}


def skipped_steps(state: TrainState) -> jax.Array:
    """How many steps were skipped since the run began: the optimizer counts only the others."""
    (_, updates), *_ = optax.tree.get_all_with_path(state.opt_state, "count")
    return state.step - updates


def finite_groups(state: TrainState) -> dict[str, jax.Array]:
    """Whether every number of a group of the state is finite, {group: bool scalar}."""
    groups = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: _is_finite(tree) for name, tree in groups.items()}


def _unless_bad(
    experiment: Experiment,
    before: TrainState,
    after: TrainState,
    loss: jax.Array,
    grad_norm: jax.Array,
) -> TrainState:
    """The state after a step, or where the step is bad the one before it with the step counted."""
    is_good = _is_finite((loss, grad_norm, after))
    if experiment.grad_norm_limit:
        is_good &= grad_norm <= experiment.grad_norm_limit
    kept = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), after, before)
    return kept.replace(step=after.step)


def _is_finite(tree: Any) -> jax.Array:
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in numbers], bool))


def draw_views(
    experiment: Experiment, images: jax.Array | tuple[jax.Array, jax.Array], key: jax.Array
) -> Views:
    """Draws the views of a step, as the experiment's recipe has them."""
    recipe, num_views = experiment.views, experiment.num_views
    images, local_images = images if isinstance(images, tuple) else (images, images)
    whole = make_views(images, key, recipe, num_views)
    local, mix, online = None, None, whole
    if recipe.num_local:
        local_key = jax.random.fold_in(key, LOCAL_STREAM)
        local = make_local_views(local_images, local_key, recipe, first_number=num_views)
    if recipe.cutmix_probability:
        cutmix_key = jax.random.fold_in(key, CUTMIX_STREAM)
        online, *mix = cutmix(whole, cutmix_key, num_views, recipe.cutmix_probability)
        mix = CutMix(*mix)
    return Views(whole, online, local, mix)


def only_sources(views: Views, sources: jax.Array) -> Views:
    """Leaves the online branch the selected views alone.

    Args:
      views: as drawn; `online` has G views of each of the B images.
      sources: indices into the G views, [S, B].

    Returns:
      The same views; `online` has S of every image, [B x S, size, size, C].
    """
    batch_size, shape = sources.shape[1], views.online.shape[1:]
    of_image = views.online.reshape(batch_size, -1, *shape)  # [B, G, size, size, C]
    index = sources.T.reshape(batch_size, -1, *(1,) * len(shape))
    selected = jnp.take_along_axis(of_image, index, axis=1)
    return views._replace(online=selected.reshape(-1, *shape), sources=sources)


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
    """Target projections [G, B, D] without gradient, or None where the online pass has them too."""
    if not experiment.has_target_pass:
        return None, {}
    if experiment.has_ema_target:
        params, batch_stats = state.target_params, state.target_batch_stats
    else:
        params, batch_stats = _of_target(state.params), _of_target(state.batch_stats)
    variables = {"params": params, "batch_stats": batch_stats}
    (_, z, _), batch_stats = run_branch(
        experiment.target,
        views,
        experiment.num_views,
        variables,
        num_microbatches=experiment.num_microbatches,
    )
    # An online target's running statistics are the online pass's to update.
    return z, batch_stats if experiment.has_ema_target else {}


def _online_pass(
    experiment: Experiment, params, batch_stats, views: Views, z_target, drop_path_key
):
    """Outputs of the online branch, views first, and its new running statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    num_sources, num_local = experiment.num_sources, experiment.views.num_local
    run = partial(run_branch, num_microbatches=experiment.num_microbatches)
    outputs, batch_stats = run(
        experiment.online, views.online, num_sources, variables, drop_path_key
    )
    z_whole = outputs[1]
    if views.mix is not None:
        whole = {group: _of_target(tree) for group, tree in variables.items()}
        (_, z_whole, _), _ = run(experiment.target, views.whole, experiment.num_views, whole)
        z_whole = jax.lax.stop_gradient(z_whole)
    if views.local is not None:
        # The running statistics stay those of global views: evaluation's images are like them.
        local_key = jax.random.fold_in(drop_path_key, LOCAL_STREAM)
        of_local, _ = run(experiment.local, views.local, num_local, variables, local_key)
        outputs = [jnp.concatenate(pair) for pair in zip(outputs, of_local, strict=True)]
    h, z, p = outputs
    outputs = Outputs(h=h, z=z, p=p, z_target=z_target, mix=views.mix, sources=views.sources)
    return _with_targets(experiment, outputs, z_whole), batch_stats


def _with_targets(experiment: Experiment, outputs: Outputs, z_whole: jax.Array) -> Outputs:
    """The outputs, with positives and negatives from the branch that the config names."""
    if not experiment.has_target_pass:
        outputs = outputs._replace(z_target=z_whole)
    if experiment.target_branch == "ema_positive":
        outputs = outputs._replace(z_negative=z_whole)
    return outputs


def _of_target(tree: Any) -> Any:
    """The branches that the target has too: no predictor, no probe."""
    return {group: tree[group] for group in ("backbone", "projector")}


def _init_probe(experiment: Experiment, images: jax.Array, variables: Any, key: jax.Array) -> Any:
    embed = partial(experiment.online.apply, method="embed")
    h = jax.eval_shape(embed, variables, images)
    return experiment.probe.init(key, jnp.zeros(h.shape, jnp.float32))["params"]


def _probe_gradient(
    experiment: Experiment, state: TrainState, h: jax.Array, labels: jax.Array
) -> tuple[Any, Metrics]:
    """Gradient and figures of the online probe, on the embeddings [V, B, F] of global views."""
    h = jax.lax.stop_gradient(h[: experiment.num_sources]).astype(jnp.float32)
    labels = jnp.broadcast_to(labels[None, :], h.shape[:2])  # [G, B]
    is_known = labels >= 0
    num_known = jnp.maximum(jnp.sum(is_known), 1)

    def loss_fn(params):
        scores = experiment.probe.apply({"params": params}, h)  # [G, B, C]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels, 0))
        hits = (jnp.argmax(scores, axis=-1) == labels) & is_known
        loss = jnp.sum(jnp.where(is_known, losses, 0)) / num_known
        return loss, jnp.sum(hits) / num_known

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, top1), grads = gradient(state.params["probe"])
    return grads, {"online_linear_loss": loss, "online_linear_top1": top1}


def _figures(
    experiment: Experiment, state: TrainState, outputs: Outputs, key: jax.Array
) -> Metrics:
    """The figures of a step before whose update the state stood."""
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
                partial(_outputs_of_projections, experiment, state, outputs),
                outputs.z,
                state.memory,
                key,
            )
        return figures

    def leave_out():
        names = FIGURES if experiment.inspects_gradients else FIGURES[:2]
        return {name: jnp.float32(jnp.nan) for name in names}

    is_logged = (state.step + 1) % experiment.figures_every_steps == 0
    return jax.lax.cond(is_logged, compute, leave_out)


def _outputs_of_projections(
    experiment: Experiment, state: TrainState, outputs: Outputs, z: jax.Array
) -> Outputs:
    """The step's outputs as a function of the online projections [V, B, D]."""
    num_sources = experiment.num_sources
    p = _predict(experiment.online, state, z[:num_sources])
    if z.shape[0] > num_sources:
        p = jnp.concatenate([p, _predict(experiment.local, state, z[num_sources:])])
    z_whole = z[:num_sources] if outputs.mix is None else outputs.negatives
    return _with_targets(experiment, outputs._replace(z=z, p=p), z_whole)


def _predict(branch: Siamese, state: TrainState, z: jax.Array) -> jax.Array:
    """Predictions of projections [V, B, D], by the weights before the update."""
    if branch.predictor is None:
        return z
    variables = {
        "params": state.params["predictor"],
        "batch_stats": state.batch_stats["predictor"],
    }
    p, _ = branch.predictor.apply(variables, images_first(z), train=True, mutable=["batch_stats"])
    return views_first(p, z.shape[0])
