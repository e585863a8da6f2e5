"""Guided stop-gradient's choice of sources, for any loss that is linear in a unit target row."""

import jax
import jax.numpy as jnp

from gsg_jax.methods.guided import PAIRS, closest_pairs
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
    num_global, batch_size, _ = z.shape
    image, reference, a, b = closest_pairs(z, key, PAIRING_OF_VIEWS[num_global])
    of_image, of_reference = (jnp.arange(batch_size)[who] for who in (image, reference))
    picks = jnp.zeros((num_global, batch_size), z.dtype)
    picks = picks.at[a, of_image].add(1).at[num_global - 2 + b, of_reference].add(1)
    value, memory, metrics = loss(outputs._replace(picks=picks), memory, key, **options)
    shares = {f"closest_{pair}": jnp.mean(2 * a + b == n) for n, pair in enumerate(PAIRS)}
    return value, memory, metrics | shares
