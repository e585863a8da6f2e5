"""The online probe: a linear classifier trained beside the method, on detached embeddings."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gsg_jax.methods.method import Metrics
from gsg_jax.models.siamese import Siamese


def init_probe(
    probe: nn.Dense, online: Siamese, variables: Any, images: jax.Array, key: jax.Array
) -> Any:
    """Draws the probe's parameters, for embeddings as wide as the online branch's."""
    embed = partial(online.apply, method="embed")
    h = jax.eval_shape(embed, variables, images)
    return probe.init(key, jnp.zeros(h.shape, jnp.float32))["params"]


def probe_gradient(
    probe: nn.Dense, params: Any, h: jax.Array, labels: jax.Array
) -> tuple[Any, Metrics]:
    """Gradient of the probe's softmax regression; no gradient enters the embeddings.

    Args:
      probe: the classifier.
      params: its parameters.
      h: embeddings of global views, [V, B, F].
      labels: int32 [B]; -1 is unknown and left out.

    Returns:
      (gradient, metrics): a tree like params; online_linear_loss and online_linear_top1, the means
      over the views of the labelled images, 0 if there is none.
    """
    h = jax.lax.stop_gradient(h).astype(jnp.float32)
    labels = jnp.broadcast_to(labels[None, :], h.shape[:2])  # [V, B]
    is_known = labels >= 0
    num_known = jnp.maximum(jnp.sum(is_known), 1)

    def loss_fn(params):
        scores = probe.apply({"params": params}, h)  # [V, B, C]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels, 0))
        hits = (jnp.argmax(scores, axis=-1) == labels) & is_known
        loss = jnp.sum(jnp.where(is_known, losses, 0)) / num_known
        return loss, jnp.sum(hits) / num_known

    (loss, top1), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, {"online_linear_loss": loss, "online_linear_top1": top1}
