"""Guided stop-gradient's choice of sources, for any loss that is linear in a unit target row."""

import jax

from gsg_jax.methods.guided import closest_pairs, picks_of, shares_of
from gsg_jax.methods.method import LossFn, Memory, Metrics, Outputs

SOURCES_BY = ("method", "guided")
PAIRING_OF_VIEWS = {2: "roll", 4: "permutation"}  # by G, the number of global views


def guided_sources(
    loss: LossFn, outputs: Outputs, memory: Memory, key: jax.Array, **options
) -> tuple[jax.Array, Memory, Metrics]:
    """A loss whose sources are the views that guided stop-gradient picks.

    In each pair of images the two closest views follow their siblings' targets; no other global
    view follows any, and local views follow the targets of all sources of their image. All else in
    the loss, such as a repulsion, stays as it is. For the negative cosine this is `guided_loss`.

    Args:
      loss: takes its targets from `positives`.
      outputs: z_target [G, B, D], with G = 2 or 4.
      memory: of the loss.
      key: the loss's; also draws the references for four views.
      options: of the loss.

    Returns:
      As the loss does, with guided_loss's closest_11 to closest_22 among the metrics.

    Source: this project's, after Lee & Lee, NeurIPS 2023 (arXiv 2503.09058).
    """
    z = jax.lax.stop_gradient(outputs.z_target)
    pairs = closest_pairs(z, key, PAIRING_OF_VIEWS[z.shape[0]])
    outputs = outputs._replace(picks=picks_of(pairs, z))
    value, memory, metrics = loss(outputs, memory, key, **options)
    return value, memory, metrics | shares_of(pairs)
