"""Embeddings of whole sets of images, in evaluation mode."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gsg_jax.data.augment import normalize_channels
from gsg_jax.data.loader import eval_batches
from gsg_jax.data.sources import Source
from gsg_jax.models.resnet import ResNet
from gsg_jax.models.vit import ViT

Embed = Callable[[np.ndarray], jax.Array]


def embed_source(embed: Embed, source: Source, *, batch_size: int, size: int | None) -> np.ndarray:
    """Embeds every image of a source, in its order.

    Args:
      embed: maps uint8 images [N, H, W, C] to embeddings [N, F].
      source: the images.
      batch_size: images at a time; the last batch is padded, and the padding dropped.
      size: side of the centre crop, pixels; None takes the images as they are.

    Returns:
      Embeddings, float32 [len(source), F].
    """
    rows = []
    for batch in eval_batches(source, batch_size=batch_size, size=size):
        rows.append(np.asarray(embed(batch["image"]))[: batch["num_valid"]])
    return np.concatenate(rows)


def backbone_embed(
    backbone: ResNet | ViT, params: dict, batch_stats: dict, views: ml_collections.ConfigDict
) -> Embed:
    """Makes the function that embeds images by a backbone with frozen statistics.

    Args:
      backbone: the module.
      params: of the backbone alone.
      batch_stats: running statistics of the backbone alone; {} where it has no BatchNorm.
      views: the config group; its mean and std normalise the images.

    Returns:
      A function for embed_source.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    return partial(_embed, backbone, views.mean, views.std, variables)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _embed(backbone, mean, std, variables, images):
    images = images.astype(jnp.float32) / 255
    normalised = jax.vmap(partial(normalize_channels, mean=mean, std=std))(images)
    return backbone.apply(variables, normalised, train=False)


def pixels(images: np.ndarray) -> np.ndarray:
    """Raw pixels as embeddings: [N, H, W, C] to float32 [N, H x W x C] in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255
