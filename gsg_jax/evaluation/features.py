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

# Of the mean: float32 has seven digits.
CONSTANT_STD = 1e-6


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


def standardize(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Brings every channel to mean 0 and standard deviation 1 over the training set.

    Args:
      train: embeddings, [N, F].
      *others: embeddings of other sets, each [M, F]; moved and scaled as train is.

    Returns:
      train and the others, float32. A channel that is constant over train, but for rounding, is
      only moved.
    """
    mean = np.mean(train, axis=0, dtype=np.float64)
    # By the squares, in float64: np.std would make a copy of the set that is twice as large.
    squares = np.einsum("nf,nf->f", train, train, dtype=np.float64) / len(train)
    std = np.sqrt(np.maximum(squares - mean**2, 0))
    scale = np.where(std > CONSTANT_STD * np.abs(mean), std, 1)
    return [
        ((rows - mean[None, :]) / scale[None, :]).astype(np.float32) for rows in (train, *others)
    ]
