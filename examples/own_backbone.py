"""A custom backbone, for any method: a plain convolutional network.

    gsg-jax simsiam_gsg --plugin=examples/own_backbone.py --config.model.backbone=plain_cnn

Evaluations of the run need the same --plugin.
"""

import flax.linen as nn
import jax.numpy as jnp

import gsg_jax
from gsg_jax.models.norm import BatchNorm, Norm


class PlainCNN(nn.Module):
    """Convolutions, each of which halves the map and doubles the channels; then the mean."""

    width: int
    num_stages: int
    norm: Norm = BatchNorm

    @nn.compact
    def __call__(self, x, *, train):
        """Maps images [N, H, W, C] to embeddings [N, F]."""
        for stage in range(self.num_stages):
            x = nn.Conv(self.width * 2**stage, (3, 3), (2, 2), use_bias=False)(x)
            x = nn.relu(self.norm(name=f"norm{stage}")(x, train=train))
        return jnp.mean(x, axis=(1, 2))


def plain_cnn(model, norm):
    """The backbone of `config.model`, with the normalisation that it asks for."""
    return PlainCNN(model.width, model.num_stages, norm)


gsg_jax.register_backbone("plain_cnn", plain_cnn)
