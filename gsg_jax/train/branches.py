"""The two branches in training mode: their passes over a step's views, whole or in microbatches."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Outputs
from gsg_jax.models.siamese import Siamese
from gsg_jax.train.state import (
    LOCAL_STREAM,
    Experiment,
    TrainState,
    running_statistics,
    target_groups,
)
from gsg_jax.train.views import Views


@jax.named_scope("target")
def target_pass(
    experiment: Experiment, state: TrainState, views: jax.Array
) -> tuple[jax.Array | None, Any]:
    """Runs the target branch, without gradient, if targets need a pass of their own.

    Args:
      experiment: the static parts.
      state: before the step.
      views: global views, [B x G, size, size, C].

    Returns:
      (z_target, batch_stats): projections [G, B, D], or None if the online pass makes them too; the
      target's new running statistics, {} if the target is online, since the online pass updates
      those.
    """
    if not experiment.has_target_pass:
        return None, {}
    if experiment.has_ema_target:
        params, batch_stats = state.target_params, state.target_batch_stats
    else:
        params, batch_stats = target_groups(state.params), target_groups(state.batch_stats)
    (_, z, _), batch_stats = run_branch(
        experiment.target,
        views,
        experiment.num_views,
        {"params": params, "batch_stats": batch_stats},
        num_microbatches=experiment.num_microbatches,
        unroll=experiment.unrolls_microbatches,
    )
    return z, batch_stats if experiment.has_ema_target else {}


def online_pass(
    experiment: Experiment,
    variables: dict[str, Any],
    views: Views,
    z_target: jax.Array | None,
    drop_path_key: jax.Array,
) -> tuple[Outputs, Any]:
    """Returns the online branch's outputs with their targets, and the new running statistics.

    Args:
      experiment: the static parts.
      variables: {"params", "batch_stats"} of the online branch.
      views: of the step.
      z_target: from target_pass, [G, B, D] or None.
      drop_path_key: for stochastic depth.
    """
    num_sources, num_local = experiment.num_sources, experiment.views.num_local
    run = partial(
        run_branch,
        num_microbatches=experiment.num_microbatches,
        unroll=experiment.unrolls_microbatches,
    )
    outputs, batch_stats = run(
        experiment.online, views.online, num_sources, variables, drop_path_key
    )
    z_whole = outputs[1]
    needs_whole = not experiment.has_target_pass or experiment.target_branch == "ema_positive"
    if views.mix is not None and needs_whole:
        whole = {group: target_groups(tree) for group, tree in variables.items()}
        (_, z_whole, _), _ = run(experiment.target, views.whole, experiment.num_views, whole)
        z_whole = jax.lax.stop_gradient(z_whole)
    if views.local is not None:
        # The running statistics stay those of global views, which are like evaluation's images.
        local_key = jax.random.fold_in(drop_path_key, LOCAL_STREAM)
        of_local, _ = run(experiment.local, views.local, num_local, variables, local_key)
        outputs = [jnp.concatenate(pair) for pair in zip(outputs, of_local, strict=True)]
    h, z, p = outputs
    outputs = Outputs(h=h, z=z, p=p, z_target=z_target, mix=views.mix, sources=views.sources)
    return with_targets(experiment, outputs, z_whole), batch_stats


def with_targets(experiment: Experiment, outputs: Outputs, z_whole: jax.Array) -> Outputs:
    """Adds z_target, and z_negative if only positives come from the EMA branch.

    Args:
      experiment: the static parts.
      outputs: of the online branch; z_target is None if there was no target pass.
      z_whole: online projections of the whole global views, [G, B, D].
    """
    if not experiment.has_target_pass:
        outputs = outputs._replace(z_target=z_whole)
    if experiment.target_branch == "ema_positive":
        outputs = outputs._replace(z_negative=z_whole)
    return outputs


def run_branch(
    branch: Siamese,
    images: jax.Array,
    num_views: int,
    variables: dict[str, Any],
    drop_path_key: jax.Array | None = None,
    num_microbatches: int = 1,
    unroll: bool = False,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    """Runs a branch over views, whole or in microbatches.

    With several microbatches the backbone takes the images part by part and keeps only the
    embeddings; the backward pass runs each part again, just before it adds the part's gradient. The
    heads and the loss see the whole batch. BatchNorm in the backbone normalises each part by
    itself, and its running statistics move to the mean of those that the parts give.

    Args:
      branch: the module.
      images: views, [B x V, size, size, C], ordered by image, then by view.
      num_views: V.
      variables: {"params", "batch_stats"}, with the groups of the branch.
      drop_path_key: for stochastic depth, or None for none.
      num_microbatches: parts in which the backbone processes the images; divides B.
      unroll: whether the parts are unrolled instead of looped over.

    Returns:
      ((h, z, p), batch_stats): embeddings [V, B, F], projections and predictions [V, B, D]; the
      running statistics of every group.

    Source: Gao et al., RepL4NLP 2021 (arXiv 2101.06983), for a loss over the whole batch.
    """
    rngs = None if drop_path_key is None else {"drop_path": drop_path_key}
    train = {"train": True, "mutable": ["batch_stats"]}
    if num_microbatches == 1:
        outputs, updates = branch.apply(variables, images, rngs=rngs, **train)
        batch_stats = running_statistics(updates, variables["params"])
    else:
        h, of_backbone = _embed_in_parts(
            branch.backbone, images, num_views, variables, drop_path_key, num_microbatches, unroll
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
    unroll: bool,
) -> tuple[jax.Array, Any]:
    """Embeddings [B x V, F], and the mean of the parts' running statistics."""
    of_backbone = {
        "params": variables["params"]["backbone"],
        "batch_stats": variables["batch_stats"].get("backbone", {}),
    }

    @jax.checkpoint  # a part's activations are freed once its embeddings are computed
    def embed(of_backbone, part, number):
        rngs = {}
        if drop_path_key is not None:
            rngs = {"drop_path": jax.random.fold_in(drop_path_key, number)}
        h, updates = backbone.apply(of_backbone, part, train=True, mutable="batch_stats", rngs=rngs)
        return h, updates.get("batch_stats", {})

    def add_part(of_backbone, part_and_number):
        h, batch_stats = embed(of_backbone, *part_and_number)
        # One part at a time: the next one waits for this one, in the backward pass too.
        of_backbone, h = jax.lax.optimization_barrier((of_backbone, h))
        return of_backbone, (h, batch_stats)

    # Image i is in part i mod num_parts, so that every part is spread evenly over the devices.
    split = partial(_swap_rows, num_rows=num_parts, width=num_views)
    parts = split(images).reshape(num_parts, -1, *images.shape[1:])
    _, (h, batch_stats) = jax.lax.scan(
        add_part, of_backbone, (parts, jnp.arange(num_parts)), unroll=num_parts if unroll else 1
    )
    h = h.reshape(-1, h.shape[-1])
    h = _swap_rows(h, num_rows=len(h) // (num_parts * num_views), width=num_views)
    return h, jax.tree.map(partial(jnp.mean, axis=0), batch_stats)


def _swap_rows(x: jax.Array, *, num_rows: int, width: int) -> jax.Array:
    """Transposes rows, taken in groups of `width` as [groups / num_rows, num_rows]."""
    groups = x.reshape(-1, num_rows, width, *x.shape[1:])
    return groups.swapaxes(0, 1).reshape(x.shape)


def views_first(x: jax.Array, num_views: int) -> jax.Array:
    """[B x V, D], ordered by image, to [V, B, D]."""
    return x.reshape(-1, num_views, x.shape[-1]).swapaxes(0, 1)


def images_first(x: jax.Array) -> jax.Array:
    """[V, B, D] to [B x V, D], ordered by image."""
    return x.swapaxes(0, 1).reshape(-1, x.shape[-1])
