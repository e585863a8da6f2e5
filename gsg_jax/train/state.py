"""What a step reads and changes: the static experiment, the train state, the key streams."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gsg_jax.data.augment import ViewRecipe
from gsg_jax.methods.method import LossFn, Memory
from gsg_jax.models.siamese import Siamese, init_variables
from gsg_jax.train.online_probe import init_probe

# Numbers that are folded into a key for a separate draw: large ones, since splitting a key gives
# the same keys as folding the first numbers into it.
MEMORY_STREAM = 2**32 - 1  # into the seed's key, whose other folds are the steps
DROP_PATH_STREAM = 2**32 - 1  # into a step's key
LOCAL_STREAM, CUTMIX_STREAM = 2**32 - 1, 2**32 - 2  # into the views' key


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: steps done, int32 scalar; together with the seed it determines the next step's keys.
      params: parameters of the online branch, {backbone, projector, predictor}, and {probe} if the
        run trains an online probe.
      batch_stats: running BatchNorm statistics of the online branch, with the groups of params;
        {} for a group without BatchNorm.
      target_params: EMA of the online backbone and projector; {} if the target is online.
      target_batch_stats: the target branch's own running statistics; {} if the target is online.
      opt_state: the optimizer's state.
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
      local: the online branch for local views, of which there is a different number.
      target: the target branch's module: the online branch without a predictor.
      target_branch: one of TARGETS.
      ema_decay: schedule of the decay; target <- decay x target + (1 - decay) x online.
      loss: (outputs, memory, key) -> (loss, memory, metrics).
      init_memory: key -> the method's memory.
      optimizer: of the online parameters.
      frozen: paths of the parameters that no step changes.
      views: how a view is drawn.
      num_views: global views per image, G.
      num_sources: views per image that the online branch sees, S: G, or the selected ones only.
      select: (z_target, key) -> the selected views [S, B], or None.
      seed: of all randomness.
      figures_every_steps: how often the collapse figures are computed; NaN in between.
      inspects_gradients: whether these figures include the parts of the gradient.
      num_microbatches: parts in which the backbone processes a batch.
      unrolls_microbatches: whether the parts are unrolled instead of looped over.
      skips_bad_steps: whether a bad step leaves the state as it was. A step is bad if its loss,
        gradient norm or new state is not finite, or its gradient norm exceeds grad_norm_limit.
      grad_norm_limit: largest gradient norm of a good step, 0 for none.
      probe: linear classifier trained on embeddings without gradient, or None.
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
    unrolls_microbatches: bool = False
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
        """Whether targets come from a separate pass, before the online branch's."""
        return self.has_ema_target or self.select is not None


def init_state(experiment: Experiment, channels: int) -> TrainState:
    """Draws the state before the first step, for images of C channels.

    An EMA target starts as a copy of the online branch.
    """
    size = experiment.views.size
    images = jnp.zeros((2 * experiment.num_sources, size, size, channels))
    key = jax.random.key(experiment.seed)
    variables = init_variables(experiment.online, experiment.seed, images.shape[1:])
    params = variables["params"]
    if experiment.probe:
        probe = init_probe(experiment.probe, experiment.online, variables, images, key)
        params = params | {"probe": probe}
    batch_stats = running_statistics(variables, params)
    target_params, target_batch_stats = {}, {}
    if experiment.has_ema_target:
        target_params = jax.tree.map(jnp.copy, target_groups(params))
        target_batch_stats = jax.tree.map(jnp.copy, target_groups(batch_stats))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        target_params=target_params,
        target_batch_stats=target_batch_stats,
        opt_state=experiment.optimizer.init(params),
        memory=experiment.init_memory(jax.random.fold_in(key, MEMORY_STREAM)),
    )


def step_keys(seed: int, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of a step, derived from the seed and the step only: views, loss, stochastic depth."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    view_key, loss_key = jax.random.split(key)
    return view_key, loss_key, jax.random.fold_in(key, DROP_PATH_STREAM)


def running_statistics(variables: Any, params: Any) -> Any:
    """Running statistics of every group of params; Flax leaves out a group without BatchNorm."""
    return {group: variables.get("batch_stats", {}).get(group, {}) for group in params}


def target_groups(tree: Any) -> Any:
    """The groups that the target branch has too: no predictor, no probe."""
    return {group: tree[group] for group in ("backbone", "projector")}


def skipped_steps(state: TrainState) -> jax.Array:
    """Number of steps skipped since the run began: the optimizer counts only the others."""
    (_, updates), *_ = optax.tree.get_all_with_path(state.opt_state, "count")
    return state.step - updates


def finite_groups(state: TrainState) -> dict[str, jax.Array]:
    """Whether all numbers of each group of the state are finite, {group: bool scalar}."""
    groups = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: is_finite(tree) for name, tree in groups.items()}


def is_finite(tree: Any) -> jax.Array:
    """Whether every floating-point number of a tree is finite, a bool scalar."""
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in numbers], bool))
