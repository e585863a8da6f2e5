"""SimCLR and MoCo: a view finds its sibling among the other images (InfoNCE)."""

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.similarity import normalize


def nt_xent_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    temperature: float,
    stop_gradient: bool = False,
) -> tuple[jax.Array, Memory, Metrics]:
    """Mean cross-entropy of finding each view's sibling among all other views of the batch.

    For a view u with sibling u', among the 2 B views t of the target branch:
      l = -log( exp(u . t' / tau) / sum_{t != itself} exp(u . t / tau) ), on unit vectors.

    Args:
      outputs: online predictions p, target projections z_target (of the sibling) and negatives (of
        all others), each [2, B, D].
      memory: unused, returned as is.
      key: unused; nothing is random.
      temperature: tau, above 0.
      stop_gradient: True keeps the gradient out of an online target (UniGrad's table 3).

    Returns:
      (loss, memory, metrics): loss is a scalar, at least 0, log(2 B - 1) if all rows are equal.
      Nothing else is logged.

    Source: Chen et al., ICML 2020 (arXiv 2002.05709), eq. 1.
    """
    del key
    sources, siblings, others = _unit_views(outputs, stop_gradient)
    positive = jnp.sum(sources * siblings, axis=-1) / temperature  # [2, B]
    logits = _products("vbd,wcd->vbwc", sources, others) / temperature  # [2, B, 2, B]
    is_view = jnp.eye(2, dtype=bool)[:, None, :, None]
    is_image = jnp.eye(sources.shape[1], dtype=bool)[None, :, None, :]
    logits = jnp.where(is_image & ~is_view, positive[..., None, None], logits)
    logits = jnp.where(is_image & is_view, -jnp.inf, logits)
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=(2, 3)) - positive)
    return loss, memory, {"attraction": -jnp.mean(positive)}


def moco_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    temperature: float,
    queue_size: int,
    stop_gradient: bool = True,
) -> tuple[jax.Array, Memory, Metrics]:
    """Mean cross-entropy of finding each view's sibling among a queue of earlier targets.

    For a view u with sibling target t' and the queue's rows k:
      l = -log( exp(u . t' / tau) / (exp(u . t' / tau) + sum_k exp(u . k / tau)) ), on unit vectors.
    Both orders of the two views count; the paper's loss takes one order. Afterwards the step's
    targets replace the queue's oldest rows.

    Args:
      outputs: online predictions p, target projections z_target (of the sibling) and negatives
        (what joins the queue), each [2, B, D].
      memory: queue, unit rows [Q, D]; oldest, int32 scalar, the index of its oldest row.
      key: unused; nothing is random.
      temperature: tau, above 0.
      queue_size: Q, at least 2 B.
      stop_gradient: False lets the gradient into an online target.

    Returns:
      (loss, memory, metrics): loss is a scalar, at least 0. Nothing else is logged.

    Source: He et al., CVPR 2020 (arXiv 1911.05722), eq. 1 and algorithm 1; Chen et al.
    (arXiv 2003.04297).
    """
    del key
    sources, siblings, others = _unit_views(outputs, stop_gradient)
    queue, oldest = memory["queue"], memory["oldest"]
    positive = jnp.sum(sources * siblings, axis=-1, keepdims=True)  # [2, B, 1]
    negative = _products("vbd,qd->vbq", sources, queue)  # [2, B, Q]
    logits = jnp.concatenate([positive, negative], axis=-1) / temperature
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

    others = others.reshape(-1, others.shape[-1])  # [2 B, D]
    places = (oldest + jnp.arange(others.shape[0])) % queue_size
    queue = queue.at[places].set(jax.lax.stop_gradient(others))
    memory = {"queue": queue, "oldest": (oldest + others.shape[0]) % queue_size}
    return loss, memory, {"attraction": -jnp.mean(positive) / temperature}


def init_queue(key: jax.Array, *, width: int, queue_size: int, **options) -> Memory:
    """Makes the memory before the first step: a queue of random unit rows [Q, D], and oldest."""
    del options
    queue = normalize(jax.random.normal(key, (queue_size, width)))
    return {"queue": queue, "oldest": jnp.zeros((), jnp.int32)}


def check_two_views(*, num_views: int, **choices) -> None:
    """Raises ValueError if there are not two global views per image."""
    del choices
    if num_views != 2:
        raise ValueError(
            f"method.num_views is {num_views}, this loss needs two views: "
            "set --config.method.num_views=2"
        )


def check_queue(*, num_views: int, batch_size: int, queue_size: int, **choices) -> None:
    """Raises ValueError if the queue cannot hold one step, or there are not two views."""
    check_two_views(num_views=num_views, **choices)
    if queue_size < 2 * batch_size:
        raise ValueError(
            f"method.queue_size is {queue_size}, a step adds {2 * batch_size} rows "
            f"(2 x data.batch_size): set --config.method.queue_size={2 * batch_size} or more, or "
            f"--config.data.batch_size={queue_size // 2} or less"
        )


def _unit_views(outputs: Outputs, stop_gradient: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unit rows [2, B, D]: sources, their siblings' targets, negatives.

    The views keep their own axis. If it were merged with the images' axis, the rows would no longer
    follow the images' sharding, and each device would compute the loss of all images.
    """
    chex.assert_equal_shape([outputs.p, outputs.z_target, outputs.negatives])
    chex.assert_axis_dimension(outputs.p, 0, 2)
    targets = (outputs.z_target, outputs.negatives)
    z, others = jax.lax.stop_gradient(targets) if stop_gradient else targets
    return normalize(outputs.p), normalize(z[::-1]), normalize(others)


def _products(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, precision=jax.lax.Precision.HIGHEST)
