"""The weights of another run that a run starts from: config.init_from."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from gsg_jax.config.load import differences
from gsg_jax.console import UserError, given_path, say
from gsg_jax.run.checkpoint import named_shapes, read_variables
from gsg_jax.run.workdir import read_config
from gsg_jax.train.build import build_experiment
from gsg_jax.train.state import TrainState, init_state, target_groups

GROUPS = ("params", "batch_stats")
# The keys of config.model that decide what a backbone computes from its weights.
_BACKBONE = (
    *("backbone", "width", "num_stages", "stem", "stem_stride", "norm", "norm_groups"),
    *("bn_epsilon", "weight_standardization", "num_heads", "patch_size", "pooling", "positions"),
)


def read_start(config: ml_collections.ConfigDict, channels: int) -> dict[str, Any] | None:
    """Reads the weights that `config.init_from` names: the backbone, and the heads that fit.

    Args:
      config: of a run, resolved.
      channels: of its images.

    Returns:
      {params, batch_stats} of these branches, host arrays; None if no run is named.

    Raises:
      UserError: if there is no run, its checkpoint is damaged, or its backbone is another network.
    """
    if not config.init_from:
        return None
    path = given_path("--config.init_from", config.init_from)
    what = f"--config.init_from={config.init_from}"
    if path.is_file():
        raise UserError(
            f"{what}: is a file, not the workdir of a run: make one of it by --config=import_torch"
        )
    theirs = read_config(path)["model"]
    mine = ml_collections.ConfigDict({key: config.model[key] for key in _BACKBONE})
    if differing := differences(mine, {key: theirs.get(key) for key in _BACKBONE}):
        raise _another_backbone(what, f"model.{differing[0]}")
    step, found = read_variables(path)
    experiment = build_experiment(config, num_steps=1, steps_per_epoch=1)
    like = jax.eval_shape(partial(init_state, experiment, channels))
    taken = []
    for branch in like.params:
        here = named_shapes([getattr(like, group)[branch] for group in GROUPS])
        there = named_shapes([found[group].get(branch, {}) for group in GROUPS])
        if here == there:
            taken.append(branch)
        elif branch == "backbone":
            name = min(x for x in here.keys() | there.keys() if here.get(x) != there.get(x))
            pair = f"{name.partition('/')[2]} ({there.get(name)} there, {here.get(name)} here)"
            raise _another_backbone(what, pair)
    fresh = [branch for branch in like.params if branch not in taken]
    anew = f"; drawn anew: {', '.join(fresh)}, of which it has none that fits" if fresh else ""
    say(f"starting from the weights of {path}, step {step}: {', '.join(taken)}{anew}")
    return {group: {branch: found[group].get(branch, {}) for branch in taken} for group in GROUPS}


def _another_backbone(what: str, difference: str) -> UserError:
    return UserError(
        f"{what}: its backbone differs in {difference}: give the same, or the workdir of another "
        "run"
    )


def started(state: TrainState, start: dict[str, Any]) -> TrainState:
    """The state before the first step with the weights of `read_start` in it.

    An EMA target starts as a copy of the online branch, as always.
    """
    groups = {group: getattr(state, group) | start[group] for group in GROUPS}
    if state.target_params:
        targets = {f"target_{group}": target_groups(tree) for group, tree in groups.items()}
        groups |= jax.tree.map(jnp.copy, targets)  # the step donates both branches' buffers
    return state.replace(**groups)
