"""A backbone with a linear classifier behind it."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Classifier(nn.Module):
    """A linear layer on embeddings that scores classes.

    Attributes:
      backbone: maps images to embeddings h.
      num_classes: C.
      freeze_backbone: whether the backbone stays in evaluation mode and gets no gradient.
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
