"""DINO and TWIST: two views of an image agree on one of many unnamed classes."""

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.contrastive import check_two_views
from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.positives import positives


def dino_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    temperature: float,
    target_temperature: float,
    first_target_temperature: float,
    temperature_warmup_steps: int,
    centre_momentum: float,
    stop_gradient: bool = True,
) -> tuple[jax.Array, Memory, Metrics]:
    """Cross-entropy of each view's class distribution with the other view's sharpened target.

    With a centre c of the targets: q = softmax((z_target - c) / tau_t), p = softmax(z / tau_s),
      l = -sum_k q_k(x_1) log p_k(x_2), mean over both orders and the batch.

    Local views are sources only, and follow both targets.

    Args:
      outputs: online scores p [V, B, K] and target scores z_target [2, B, K].
      memory: centre [K] and steps, an int32 scalar.
      key: unused; nothing is random.
      temperature: tau_s, above 0.
      target_temperature: tau_t after the warm-up, above 0 and below tau_s.
      first_target_temperature: tau_t at the first step; it rises linearly from there.
      temperature_warmup_steps: length of this warm-up.
      centre_momentum: share of the old centre that each step keeps.
      stop_gradient: False lets the gradient into an online target.

    Returns:
      (loss, memory, metrics): loss is a scalar, at least 0; metrics has target_temperature and
      target_entropy, mean over the targets, in [0, log K].

    Source: Caron et al., ICCV 2021 (arXiv 2104.14294), algorithm 1 and section 3.1.
    """
    del key
    chex.assert_equal_shape([outputs.p[0], outputs.z_target[0]])
    chex.assert_axis_dimension(outputs.z_target, 0, 2)
    z = jax.lax.stop_gradient(outputs.z_target) if stop_gradient else outputs.z_target
    progress = jnp.minimum(memory["steps"].astype(z.dtype) / max(temperature_warmup_steps, 1), 1)
    tau_t = first_target_temperature + progress * (target_temperature - first_target_temperature)
    q = jax.nn.softmax((z - memory["centre"][None, None]) / tau_t, axis=-1)  # [2, B, K]
    targets = positives(q, outputs.p.shape[0], outputs.mix, outputs.picks)  # [V, B, K]
    scores = outputs.p / temperature
    loss = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(scores, axis=-1), axis=-1))
    attraction = -jnp.mean(jnp.sum(targets * scores, axis=-1))

    seen = jax.lax.stop_gradient(jnp.mean(z, axis=(0, 1)))
    centre = centre_momentum * memory["centre"] + (1 - centre_momentum) * seen
    memory = {"centre": centre, "steps": memory["steps"] + 1}
    entropy = jnp.mean(_entropy(jax.lax.stop_gradient(q)))
    metrics = {"target_temperature": tau_t, "target_entropy": entropy}
    return loss, memory, {"attraction": attraction, **metrics}


def init_centre(key: jax.Array, *, width: int, **options) -> Memory:
    """Makes DINO's memory before the first step: a centre of zeros [K], and steps done."""
    del key, options
    return {"centre": jnp.zeros(width), "steps": jnp.zeros((), jnp.int32)}


def check_dino(
    *,
    temperature: float,
    target_temperature: float,
    first_target_temperature: float,
    num_prototypes: int,
    **choices,
) -> None:
    """Raises ValueError if a target is not sharper than the source, or there are no prototypes."""
    check_two_views(**choices)
    for name, value in (
        ("target_temperature", target_temperature),
        ("first_target_temperature", first_target_temperature),
    ):
        if value >= temperature:
            raise ValueError(
                f"method.{name} is {value}, method.temperature {temperature}: a target must be "
                f"sharper; set --config.method.{name} below {temperature}"
            )
    if not num_prototypes:
        raise ValueError(
            "model.num_prototypes is 0, DINO's views choose among prototypes: set, "
            "for example, --config.model.num_prototypes=1024"
        )


def twist_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    sharpness_weight: float,
    diversity_weight: float,
    stop_gradient: bool = False,
) -> tuple[jax.Array, Memory, Metrics]:
    """Loss of twin class distributions: consistent, sharp in each image, diverse over the batch.

    With p_v = softmax(z_v): l = consistency + alpha sharpness - beta diversity,
      consistency = mean (KL(p_1 | p_2) + KL(p_2 | p_1)) / 2,
      sharpness   = mean over both views of H(p),
      diversity   = mean over both views of H(mean over the batch of p).

    Args:
      outputs: online scores p and target scores z_target, each [2, B, K].
      memory: unused, returned as is.
      key: unused; nothing is random.
      sharpness_weight: alpha, at least 0.
      diversity_weight: beta, at least 0.
      stop_gradient: True keeps the gradient out of an online target.

    Returns:
      (loss, memory, metrics): loss is a scalar, at least -beta log K; metrics has the three terms.

    Source: Wang et al. (arXiv 2110.07402), eq. 4.
    """
    del key
    chex.assert_equal_shape([outputs.p, outputs.z_target])
    chex.assert_axis_dimension(outputs.p, 0, 2)
    z = jax.lax.stop_gradient(outputs.z_target) if stop_gradient else outputs.z_target
    log_p = jax.nn.log_softmax(outputs.p, axis=-1)  # [2, B, K]
    log_t = jax.nn.log_softmax(z, axis=-1)[::-1]  # the sibling's
    p, t = jnp.exp(log_p), jnp.exp(log_t)
    # The sum of both divergences, for each order of the views.
    divergences = jnp.sum(p * (log_p - log_t) + t * (log_t - log_p), axis=-1)  # [2, B]
    consistency = jnp.mean(divergences) / 2
    sharpness = jnp.mean(_entropy(p))
    diversity = jnp.mean(_entropy(jnp.mean(p, axis=1)))
    loss = consistency + sharpness_weight * sharpness - diversity_weight * diversity
    terms = {"consistency": consistency, "sharpness": sharpness, "diversity": diversity}
    return loss, memory, {"attraction": consistency, **terms}


def _entropy(p: jax.Array) -> jax.Array:
    """Entropy of distributions over the last axis, in nats."""
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30)), 0), axis=-1)
