"""Optimizers and schedules, built with optax from the config."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from gsg_jax.config.check import check_warmup
from gsg_jax.config.keys import OPTIMIZERS
from gsg_jax.console import UsageError, say

MAX_STEPS = 2**31 - 1  # a step's number is an int32


def build_optimizer(
    optim: ml_collections.ConfigDict,
    *,
    batch_size: int,
    num_steps: int,
    steps_per_epoch: int,
    frozen: tuple[tuple[str, ...], ...] = (),
    probe_rate: float | None = None,
) -> optax.GradientTransformation:
    """Builds the optimizer of {backbone, projector, predictor, probe}.

    With `constant_predictor_lr` the predictor's learning rate stays constant.

    Args:
      optim: the config group.
      batch_size: images per step over all hosts; scales the learning rate.
      num_steps: length of the run.
      steps_per_epoch: steps per epoch.
      frozen: paths of parameters that nothing changes, not even weight decay.
      probe_rate: learning rate of the online probe's Adam; None without a probe.

    LARS is optax's: u = gradient + decay x weight, u <- trust_coefficient x |weight| / |u| x u for
    kernels, buffer <- momentum x buffer + rate x u, weight <- weight - buffer.

    Source: the recipe of Chen & He, CVPR 2021 (arXiv 2011.10566), section 4. LARS: You, Gitman &
    Ginsburg (arXiv 1708.03888), algorithm 1; the same as in SimCLR's code.
    Differs from the reference: algorithm 1 divides by |gradient| + decay x |weight| instead of |u|.
    BYOL's and MoCo v3's code multiply the buffer, instead of u, by the rate: after a change, the
    new rate also scales older gradients. Both are equal at a constant rate.
    """
    schedule = learning_rate_schedule(
        optim, batch_size=batch_size, num_steps=num_steps, steps_per_epoch=steps_per_epoch
    )
    kinds = {"scheduled": _optimizer(optim, schedule)}
    if optim.constant_predictor_lr:
        kinds["constant"] = _optimizer(optim, optim.learning_rate * batch_size / 256)
    if frozen:
        kinds["frozen"] = optax.set_to_zero()
    if probe_rate is not None:
        kinds["probe"] = optax.adam(probe_rate)
    if len(kinds) == 1:
        return kinds["scheduled"]

    def kind_of(path, _):
        if is_below(path, frozen):
            return "frozen"
        if path[0].key == "probe":
            return "probe"
        is_constant = optim.constant_predictor_lr and path[0].key == "predictor"
        return "constant" if is_constant else "scheduled"

    return optax.multi_transform(
        kinds, lambda params: jax.tree_util.tree_map_with_path(kind_of, params)
    )


def build_by_branch(
    optim: ml_collections.ConfigDict, rates: dict[str, float], **length: int
) -> optax.GradientTransformation:
    """Builds one optimizer with a learning rate for each branch of the parameters.

    Args:
      optim: the config group; its learning_rate is not read.
      rates: {branch: learning rate per 256 images}; 0 freezes the branch, without weight decay.
      length: batch_size, num_steps and steps_per_epoch, as in learning_rate_schedule.
    """

    def of_rate(rate):
        if not rate:
            return optax.set_to_zero()
        peak = ml_collections.ConfigDict({**optim, "learning_rate": rate})
        return _optimizer(optim, learning_rate_schedule(peak, **length))

    return optax.multi_transform(
        {branch: of_rate(rate) for branch, rate in rates.items()},
        {branch: branch for branch in rates},
    )


def is_below(path: tuple[jax.tree_util.DictKey, ...], roots: tuple[tuple[str, ...], ...]) -> bool:
    """Whether a leaf's path of keys begins with one of the roots."""
    keys = tuple(key.key for key in path)
    return any(keys[: len(root)] == root for root in roots)


def learning_rate_schedule(
    optim: ml_collections.ConfigDict, *, batch_size: int, num_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """The learning rate of step s, counted from 0: linear warm-up to the peak, then a cosine.

    In a warm-up of W steps the rate of step s is s / W of the peak: 0 at the first step, and the
    peak at step W. The cosine would reach zero one step, or one epoch, after the last.

    Args:
      optim: reads warmup_epochs (0 = none) and cosine_per: "step" lowers the rate every step,
        "epoch" keeps it constant within an epoch, as the reference does.
      batch_size: images per step; the peak is optim.learning_rate x batch_size / 256.
      num_steps: length of the run.
      steps_per_epoch: steps per epoch.
    """
    peak = optim.learning_rate * batch_size / 256
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    cosine_steps = max(num_steps - warmup_steps, 1)

    def schedule(step):
        past = jnp.maximum(step - warmup_steps, 0)
        if optim.cosine_per == "epoch":
            past = past // steps_per_epoch * steps_per_epoch
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(past / cosine_steps, 1)))
        warmup = step / max(warmup_steps, 1)
        return peak * jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def run_length(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """Returns the number of training steps, and checks it before anything is written.

    Args:
      config: reads run.num_epochs, run.num_steps if there is one, and optim.warmup_epochs.
      steps_per_epoch: steps per epoch.

    Raises:
      UsageError: if num_epochs sets the length, and the steps are too many to count or the warm-up
        takes more epochs.
    """
    run, warmup = config.run, config.optim.warmup_epochs
    if num_steps := run.get("num_steps", 0):
        if round(warmup * steps_per_epoch) > num_steps:
            say(
                f"warning: optim.warmup_epochs is {warmup:g} of {steps_per_epoch} steps: the run "
                f"ends after {num_steps}, before the learning rate has its peak"
            )
        return num_steps
    if run.num_epochs * steps_per_epoch > MAX_STEPS:
        raise UsageError(
            f"--config.run.num_epochs={run.num_epochs}: {steps_per_epoch} steps each are more than "
            f"{MAX_STEPS:,}, the most that are counted: set it to at most "
            f"{MAX_STEPS // steps_per_epoch}"
        )
    check_warmup(config)
    return run.num_epochs * steps_per_epoch


def ema_decay_schedule(method: ml_collections.ConfigDict, *, num_steps: int) -> optax.Schedule:
    """Decay of an EMA target: constant, or rising to 1 along a cosine.

    Args:
      method: the config group; reads ema_decay and ema_schedule, "constant" or "cosine".
      num_steps: length of the run, K.

    Returns:
      A schedule: the decay of step s (counted from 0), which is ema_decay or
      1 - (1 - ema_decay) (1 + cos(pi s / K)) / 2.

    Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733), section 3.2.
    """
    first = method.ema_decay

    def cosine(step):
        share = jnp.minimum(step / num_steps, 1)
        return 1 - (1 - first) * 0.5 * (1 + jnp.cos(jnp.pi * share))

    return cosine if method.ema_schedule == "cosine" else lambda step: first


def _optimizer(
    optim: ml_collections.ConfigDict, learning_rate: float | optax.Schedule
) -> optax.GradientTransformation:
    mask = _weights_only if optim.decay_weights_only else None
    if optim.name == "lars":
        return optax.lars(
            learning_rate,
            weight_decay=optim.weight_decay,
            weight_decay_mask=mask or True,
            trust_coefficient=optim.trust_coefficient,
            trust_ratio_mask=_weights_only,
            momentum=optim.momentum,
        )
    if optim.name == "adamw":
        return optax.adamw(
            learning_rate, b1=optim.momentum, weight_decay=optim.weight_decay, mask=mask
        )
    if optim.name != "sgd":
        raise ValueError(f"optim.name is {optim.name!r}: take one of {', '.join(OPTIMIZERS)}")
    return optax.chain(
        optax.add_decayed_weights(optim.weight_decay, mask),
        optax.sgd(learning_rate, momentum=optim.momentum),
    )


def _weights_only(params: optax.Params) -> optax.Params:
    """True for matrices and kernels, False for biases, norms' scales and a ViT's own tokens."""

    def is_weight(path, leaf):
        return leaf.ndim > 1 and path[-1].key not in ("class_token", "positions")

    return jax.tree_util.tree_map_with_path(is_weight, params)
