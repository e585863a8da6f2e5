"""Embeddings of whole sets of images, in evaluation mode."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gsg_jax.config.load import view_recipe
from gsg_jax.data.augment import make_views
from gsg_jax.data.colours import normalize_channels
from gsg_jax.data.loader import eval_batches
from gsg_jax.data.open import Source
from gsg_jax.devices.mesh import global_batch, local_rows, of_all_hosts
from gsg_jax.models.jit import jit_network
from gsg_jax.models.resnet import ResNet
from gsg_jax.models.vit import ViT

# Maps a host's uint8 images [n, H, W, C] to their embeddings, float32 [n, F].
Embed = Callable[[np.ndarray], np.ndarray]

# Relative to the mean: float32 keeps only seven digits.
CONSTANT_STD = 1e-6


def embed_source(embed: Embed, source: Source, *, batch_size: int, size: int | None) -> np.ndarray:
    """Embeds every image of a source in its order, float32 [N, F], on every host.

    Args:
      embed: from backbone_embed, or `pixels`.
      source: the images.
      batch_size: images at a time over all hosts; the last batch is padded, the padding dropped.
      size: side of the centre crop, pixels; None takes the images as they are.
    """
    return np.concatenate(list(embed_batches(embed, source, batch_size=batch_size, size=size)))


def embed_batches(
    embed: Embed, source: Source, *, batch_size: int, size: int | None, first: int = 0
) -> Iterator[np.ndarray]:
    """Yields the embeddings of a source's batches, float32 [B, F] each, the last one shorter.

    Args:
      embed: as in embed_source.
      source: the images.
      batch_size: B, rounded up to a multiple of the hosts.
      size: as in embed_source.
      first: the image to begin with.
    """
    num_hosts = jax.process_count()
    batches = eval_batches(
        source,
        batch_size=-(-batch_size // num_hosts) * num_hosts,
        size=size,
        first=first,
        host_index=jax.process_index(),
        num_hosts=num_hosts,
    )
    for batch in batches:
        yield of_all_hosts(embed(batch["image"]))[: batch["num_valid"]]


def backbone_embed(
    backbone: ResNet | ViT,
    params: dict,
    batch_stats: dict,
    views: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    num_views: int = 0,
) -> Embed:
    """Returns a function for embed_source that runs a backbone with frozen statistics.

    Args:
      backbone: the module.
      params: of the backbone alone, replicated over the mesh.
      batch_stats: running statistics of the backbone alone; {} without BatchNorm.
      views: the config group; its mean and std normalise the images.
      mesh: the devices that share each batch; it is padded to a multiple of them.
      num_views: q, to embed q random views of each image, the same in each call, side by side:
        float32 [n, q x F]; 0 embeds the images.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    num_devices = mesh.devices.size // jax.process_count()

    def embed(images: np.ndarray) -> np.ndarray:
        missing = -len(images) % num_devices
        padded = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images
        placed = global_batch(mesh, padded)
        if num_views:
            h = _jit_embed_views(mesh)(backbone, view_recipe(views), num_views, variables, placed)
        else:
            h = _jit_embed(mesh)(backbone, views.mean, views.std, variables, placed)
        return local_rows(h)[: len(images)]

    return embed


@cache
def _jit_embed(mesh):
    return jit_network(_embed, mesh, static_argnums=(0, 1, 2))


def _embed(backbone, mean, std, variables, images):
    images = images.astype(jnp.float32) / 255
    normalised = jax.vmap(partial(normalize_channels, mean=mean, std=std))(images)
    return backbone.apply(variables, normalised, train=False)


@cache
def _jit_embed_views(mesh):
    return jit_network(_embed_views, mesh, static_argnums=(0, 1, 2))


def _embed_views(backbone, recipe, num_views, variables, images):
    views = make_views(images, jax.random.key(0), recipe, num_views)
    return backbone.apply(variables, views, train=False).reshape(len(images), -1)


def pixels(images: np.ndarray) -> np.ndarray:
    """Raw pixels as embeddings: [N, H, W, C] to float32 [N, H x W x C] in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def standardize(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Brings every channel to mean 0 and standard deviation 1 over the training set [N, F].

    The other sets, each [M, F], are centred and scaled as train is. All are returned, as float32.
    """
    mean, scale = standardization(train)
    return [
        (rows.astype(np.float32, copy=False) - mean[None, :]) / scale[None, :]
        for rows in (train, *others)
    ]


def standardization(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of every channel of a training set [N, F], float32 [F].

    The scale is the standard deviation, and 1 for a channel that is constant up to rounding.
    """
    mean = np.mean(train, axis=0, dtype=np.float64)
    # From the squares, in float64: np.std would copy the set at twice its size.
    squares = np.einsum("nf,nf->f", train, train, dtype=np.float64) / len(train)
    std = np.sqrt(np.maximum(squares - mean**2, 0))
    scale = np.where(std > CONSTANT_STD * np.abs(mean), std, 1)
    return mean.astype(np.float32), scale.astype(np.float32)
