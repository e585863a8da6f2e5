"""A backbone with a linear classifier behind it."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Classifier(nn.Module):
    """Scores of classes, by a linear layer on embeddings.

    Attributes:
      backbone: maps images to embeddings h.
      num_classes: C.
      freeze_backbone: True keeps the backbone in evaluation mode and lets no gradient into it.
    """

    backbone: nn.Module
    num_classes: int
    freeze_backbone: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images [N, H, W, C] to scores [N, num_classes], float32."""
        h = self.backbone(images, train=train and not self.freeze_backbone)
        if self.freeze_backbone:
            h = jax.lax.stop_gradient(h)
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")
        return head(h.astype(jnp.float32))
