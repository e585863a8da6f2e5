"""Running the blocks of a backbone, with or without keeping their activations."""

import flax.linen as nn
import jax


def run_block(block: nn.Module, x: jax.Array, train: bool, *, recompute: bool) -> jax.Array:
    """Runs a block.

    Args:
      block: maps (x, train=) to activations.
      x: what it takes.
      train: whether in training mode.
      recompute: whether its gradient computes the activations inside it anew, instead of keeping
        them: a third more work, and memory for the blocks' inputs alone.

    Returns:
      What the block returns.

    Source: Chen et al. (arXiv 1604.06174).
    """

    def call(block, x):
        return block(x, train=train)

    return nn.remat(call)(block, x) if recompute else call(block, x)
