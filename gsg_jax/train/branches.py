"""Running a branch over a batch of views in training mode: whole, or its backbone part by part."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gsg_jax.devices.backend import loops_are_slow
from gsg_jax.models.siamese import Siamese


def run_branch(
    branch: Siamese,
    images: jax.Array,
    num_views: int,
    variables: dict[str, Any],
    drop_path_key: jax.Array | None = None,
    num_microbatches: int = 1,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    """What a branch makes of views, and its new running statistics.

    With several microbatches the backbone takes one part of the images after the other and keeps
    the embeddings alone; in the backward pass it runs each part again, just before the part's
    gradient, which is added to the others'. The heads and the loss see the whole batch. A BatchNorm
    of the backbone then normalises part by part, and its running statistics move to the mean of
    where the parts would bring them.

    Args:
      branch: the module.
      images: views, [B x V, size, size, C], images first.
      num_views: V.
      variables: {"params", "batch_stats"}, with the groups of the branch.
      drop_path_key: of stochastic depth, or None where there is none.
      num_microbatches: parts that the backbone takes the images in; divides B.

    Returns:
      ((h, z, p), batch_stats): embeddings [V, B, F], projections and predictions [V, B, D]; the
      running statistics of every group.

    Source: Gao et al., RepL4NLP 2021 (arXiv 2101.06983), for a loss that joins the whole batch.
    """
    rngs = None if drop_path_key is None else {"drop_path": drop_path_key}
    train = {"train": True, "mutable": ["batch_stats"]}
    if num_microbatches == 1:
        outputs, updates = branch.apply(variables, images, rngs=rngs, **train)
        batch_stats = running_statistics(updates, variables["params"])
    else:
        h, of_backbone = _embed_in_parts(
            branch.backbone, images, num_views, variables, drop_path_key, num_microbatches
        )
        heads, updates = branch.apply(variables, h, method="heads", **train)
        outputs = (h, *heads)
        batch_stats = running_statistics(updates, variables["params"]) | {"backbone": of_backbone}
    return tuple(views_first(x, num_views) for x in outputs), batch_stats


def _embed_in_parts(
    backbone: nn.Module,
    images: jax.Array,
    num_views: int,
    variables: dict[str, Any],
    drop_path_key: jax.Array | None,
    num_parts: int,
) -> tuple[jax.Array, Any]:
    """Embeddings [B x V, F], and the mean of the running statistics that the parts end with."""
    of_backbone = {
        "params": variables["params"]["backbone"],
        "batch_stats": variables["batch_stats"].get("backbone", {}),
    }

    @jax.checkpoint  # a part's activations last until its embeddings are there
    def embed(of_backbone, part, number):
        rngs = None
        if drop_path_key is not None:
            rngs = {"drop_path": jax.random.fold_in(drop_path_key, number)}
        h, updates = backbone.apply(
            of_backbone, part, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return h, updates.get("batch_stats", {})

    def add_part(of_backbone, part_and_number):
        h, batch_stats = embed(of_backbone, *part_and_number)
        # The next part begins where this one has ended; in the backward pass it is the other way.
        of_backbone, h = jax.lax.optimization_barrier((of_backbone, h))
        return of_backbone, (h, batch_stats)

    # Image i is in part i mod num_parts: so a device has as many images of every part.
    split = partial(_swap_rows, num_rows=num_parts, width=num_views)
    parts = split(images).reshape(num_parts, -1, *images.shape[1:])
    unroll = num_parts if loops_are_slow() else 1
    _, (h, batch_stats) = jax.lax.scan(
        add_part, of_backbone, (parts, jnp.arange(num_parts)), unroll=unroll
    )
    h = h.reshape(-1, h.shape[-1])
    h = _swap_rows(h, num_rows=len(h) // (num_parts * num_views), width=num_views)
    return h, jax.tree.map(partial(jnp.mean, axis=0), batch_stats)


def _swap_rows(x: jax.Array, *, num_rows: int, width: int) -> jax.Array:
    """Rows in groups of `width`: [groups / num_rows, num_rows] groups to their transpose."""
    groups = x.reshape(-1, num_rows, width, *x.shape[1:])
    return groups.swapaxes(0, 1).reshape(x.shape)


def running_statistics(variables: Any, params: Any) -> Any:
    """Those of every group of the branch; Flax leaves out a group that has no BatchNorm."""
    return {group: variables.get("batch_stats", {}).get(group, {}) for group in params}


def views_first(x: jax.Array, num_views: int) -> jax.Array:
    """[B x V, D], images first, to [V, B, D]."""
    return x.reshape(-1, num_views, x.shape[-1]).swapaxes(0, 1)


def images_first(x: jax.Array) -> jax.Array:
    """[V, B, D] to [B x V, D], images first."""
    return x.swapaxes(0, 1).reshape(-1, x.shape[-1])
