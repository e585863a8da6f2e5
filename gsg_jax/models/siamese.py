"""The two branches: backbone -> projector -> predictor; the target has no predictor."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from gsg_jax.console import UserError
from gsg_jax.models.heads import Predictor, Projector
from gsg_jax.models.norm import BatchNorm, GroupNorm, LayerNorm, Norm
from gsg_jax.models.resnet import RESNETS, ResNet
from gsg_jax.models.vit import VITS, ViT, num_heads


class Siamese(nn.Module):
    """One branch of a Siamese network.

    The target branch is the same module without a predictor; the online branch may have none
    either. Rows are ordered by image, then by view: [B x V, ...].

    Attributes:
      backbone: maps images to embeddings h.
      projector: maps embeddings to projections z.
      predictor: maps projections to predictions p; None predicts the projections.
    """

    backbone: nn.Module
    projector: nn.Module
    predictor: nn.Module | None = None

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Runs images [N, H, W, C] through the branch.

        Args:
          images: normalised views, N = B x V, ordered by image, then by view.
          train: whether to normalise by batch statistics and update the running ones.

        Returns:
          (h, z, p): embeddings [N, F], projections [N, D], predictions [N, D].
        """
        h = self.backbone(images, train=train)
        return h, *self.heads(h, train=train)

    def heads(self, h: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps embeddings [N, F] to projections and predictions, [N, D] each."""
        z = self.projector(h, train=train)
        p = z if self.predictor is None else self.predictor(z, train=train)
        return z, p

    def embed(self, images: jax.Array) -> jax.Array:
        """Maps images [N, H, W, C] to embeddings [N, F], in evaluation mode."""
        return self.backbone(images, train=False)


def build_siamese(
    model: ml_collections.ConfigDict, *, predictor: str, num_views: int
) -> tuple[Siamese, Siamese]:
    """Builds the online and the target branch from `config.model`.

    Args:
      model: the config group.
      predictor: "mlp" or "none".
      num_views: views per image in training mode, V.

    Returns:
      (online, target): the same backbone and projector; the target has no predictor, and no
      stochastic depth.
    """
    dtype = jnp.dtype(model.dtype)
    norm = _norm(model, model.head_norm, num_views)
    backbone = build_backbone(model, num_views=num_views)
    projector = Projector(
        num_layers=model.projector_layers,
        hidden_width=model.projector_hidden_width,
        width=model.projector_width,
        num_prototypes=model.num_prototypes,
        norm=norm,
        end=model.projector_end,
        dtype=dtype,
    )
    head = Predictor(hidden_width=model.predictor_hidden_width, norm=norm, dtype=dtype)
    online = Siamese(backbone, projector, head if predictor == "mlp" else None)
    whole = backbone.clone(drop_path=0.0) if isinstance(backbone, ViT) else backbone
    return online, Siamese(whole, projector)


def init_variables(branch: Siamese, seed: int, image_shape: tuple[int, int, int]) -> dict:
    """Draws a branch's initial variables, for views of a given shape.

    A backbone's variables depend neither on the heads nor on the number of views.

    Returns:
      {params: {backbone, projector, ...}, batch_stats: likewise}, without batch_stats if no module
      has BatchNorm.
    """
    return branch.init(jax.random.key(seed), jnp.zeros((1, *image_shape)), train=True)


def output_width(model: ml_collections.ConfigDict) -> int:
    """Returns the width of both branches' outputs: the projection's or the number of prototypes."""
    return model.num_prototypes or model.projector_width


def image_channels(run: ml_collections.ConfigDict, backbone: Mapping[str, Any]) -> int:
    """Returns the channels of a run's images, from the parameters of its backbone.

    Raises:
      UserError: if the backbone is a custom one that has no such parameters for any images.
    """
    model = run.model
    if "patch_embed" in backbone:
        return backbone["patch_embed"]["kernel"].shape[0] // model.patch_size**2
    if model.backbone in RESNETS:
        return backbone["conv1"]["kernel"].shape[2]
    for channels in (3, 1):  # a custom backbone: which images would it draw these parameters for?
        image = jnp.zeros((1, run.views.size, run.views.size, channels))
        init = partial(build_backbone(model).init, jax.random.key(0), train=False)
        drawn = jax.eval_shape(init, image)["params"]
        if _shapes(drawn) == _shapes(backbone):
            return channels
    raise UserError(
        f"model.backbone={model.backbone}: has other parameters than the checkpoint: give the file "
        "that registered it when the run was trained"
    )


def _shapes(tree: Mapping[str, Any]) -> Any:
    return jax.tree.map(lambda x: x.shape, tree)


def build_backbone(model: ml_collections.ConfigDict, *, num_views: int = 1) -> nn.Module:
    """Builds `config.model`'s backbone; `num_views` per image matters in training mode only."""
    return BACKBONES[model.backbone](model, _norm(model, model.norm, num_views))


def _vit(model: ml_collections.ConfigDict, norm: Norm) -> ViT:
    del norm
    width, _, depth = VITS[model.backbone]
    return ViT(
        width,
        num_heads(model),
        depth,
        patch_size=model.patch_size,
        pooling=model.pooling,
        positions=model.positions,
        freeze_patches=model.freeze_patches,
        drop_path=model.drop_path,
        recompute=model.recompute,
        dtype=jnp.dtype(model.dtype),
    )


def _resnet(model: ml_collections.ConfigDict, norm: Norm) -> ResNet:
    block, stage_sizes = RESNETS[model.backbone]
    return ResNet(
        block,
        stage_sizes[: model.num_stages],
        width=model.width,
        stem=model.stem,
        stem_stride=model.stem_stride,
        zero_init_residual=model.zero_init_residual,
        norm=norm,
        weight_standardization=model.weight_standardization,
        recompute=model.recompute,
        dtype=jnp.dtype(model.dtype),
    )


# Each function makes a backbone from `config.model` and a maker of its normalisation layers.
BACKBONES: dict[str, Callable[[ml_collections.ConfigDict, Norm], nn.Module]] = {
    **dict.fromkeys(RESNETS, _resnet),
    **dict.fromkeys(VITS, _vit),
}


def frozen_params(model: ml_collections.ConfigDict) -> tuple[tuple[str, ...], ...]:
    """Returns the paths of the parameters that no step may change."""
    is_frozen = model.backbone in VITS and model.freeze_patches
    return (("backbone", "patch_embed"),) if is_frozen else ()


def _norm(model: ml_collections.ConfigDict, kind: str, num_views: int) -> Norm:
    common = {"epsilon": model.bn_epsilon, "dtype": jnp.dtype(model.dtype)}
    if kind == "group":
        return partial(GroupNorm, num_groups=model.norm_groups, **common)
    if kind == "layer":
        return partial(LayerNorm, **common)
    return partial(
        BatchNorm,
        num_views=num_views,
        group_images=model.bn_group_images,
        momentum=model.bn_momentum,
        **common,
    )
