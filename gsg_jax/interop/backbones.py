"""Backbones by PyTorch's names: torchvision's and timm's for ResNets, timm's for ViTs."""

import re
from collections.abc import Mapping

import ml_collections
import numpy as np

from gsg_jax.console import UserError
from gsg_jax.interop.tensors import Tensor, linear, norm
from gsg_jax.models.resnet import RESNETS, BasicBlock, Bottleneck
from gsg_jax.models.vit import VITS, sine_cosine_positions

Shapes = Mapping[str, tuple[int, ...]]


def backbone_tensors(model: ml_collections.ConfigDict, channels: int = 3) -> list[Tensor]:
    """Lists the tensors of a backbone.

    Args:
      model: the config group.
      channels: of the images, 1 or 3.

    Returns:
      The tensors in PyTorch's order; paths begin below "backbone".

    Raises:
      UserError: if no PyTorch library has such a network.
    """
    if model.backbone in VITS:
        return _vit_tensors(model, channels)
    if model.norm != "batch" or model.weight_standardization:
        raise UserError(
            f"model.norm is {model.norm!r}, weight_standardization {model.weight_standardization}: "
            "no layout has names for such a ResNet; only ResNets with BatchNorm can be exported"
        )
    return _resnet_tensors(model)


def _resnet_tensors(model: ml_collections.ConfigDict) -> list[Tensor]:
    block, stage_sizes = RESNETS[model.backbone]
    tensors = [_conv("conv1", "conv1"), *norm("bn1", "bn1")]
    num_inputs = model.width
    for stage, num_blocks in enumerate(stage_sizes[: model.num_stages]):
        num_outputs = model.width * 2**stage * block.expansion
        for index in range(num_blocks):
            there, here = f"layer{stage + 1}.{index}", f"layer{stage + 1}_{index}"
            for number in range(1, 4 if block is Bottleneck else 3):
                tensors.append(_conv(f"{there}.conv{number}", here, f"conv{number}"))
                tensors += norm(f"{there}.bn{number}", here, f"bn{number}")
            if index == 0 and (stage > 0 or num_inputs != num_outputs):
                tensors.append(_conv(f"{there}.downsample.0", here, "downsample_conv"))
                tensors += norm(f"{there}.downsample.1", here, "downsample_bn")
        num_inputs = num_outputs
    return tensors


def _conv(name: str, *path: str) -> Tensor:
    return Tensor(f"{name}.weight", "params", (*path, "kernel"), "conv")


def _vit_tensors(model: ml_collections.ConfigDict, channels: int) -> list[Tensor]:
    depth = VITS[model.backbone][2]
    kind = "patches" if channels == 3 else "grey patches"
    tensors = []
    if model.pooling == "class_token":
        tensors.append(Tensor("cls_token", "params", ("class_token",), "vector"))
    if model.positions == "learned":
        tensors.append(Tensor("pos_embed", "params", ("positions",), "vector"))
    tensors += [
        Tensor("patch_embed.proj.weight", "params", ("patch_embed", "kernel"), kind),
        Tensor("patch_embed.proj.bias", "params", ("patch_embed", "bias"), "vector"),
    ]
    for index in range(depth):
        there, here = f"blocks.{index}", f"block{index}"
        tensors += norm(f"{there}.norm1", here, "norm1", has_statistics=False)
        tensors += linear(f"{there}.attn.qkv", here, "attention", "qkv")
        tensors += linear(f"{there}.attn.proj", here, "attention", "out")
        tensors += norm(f"{there}.norm2", here, "norm2", has_statistics=False)
        tensors += linear(f"{there}.mlp.fc1", here, "mlp1")
        tensors += linear(f"{there}.mlp.fc2", here, "mlp2")
    return tensors + norm("norm", "norm", has_statistics=False)


def fixed_positions(run: ml_collections.ConfigDict) -> np.ndarray:
    """Returns the fixed positions of a ViT as timm stores them, [1, T or 1 + T, D]."""
    side = run.views.size // run.model.patch_size
    table = np.asarray(sine_cosine_positions((side, side), VITS[run.model.backbone][0]))
    num_extra = int(run.model.pooling == "class_token")
    return np.pad(table, ((num_extra, 0), (0, 0)))[None]


def infer_backbone(shapes: Shapes) -> dict[str, dict]:
    """Infers the backbone from its tensors.

    Args:
      shapes: of the tensors by name, without prefix.

    Returns:
      The keys that a run's config needs: {"model": {...}, "views": {...}}.

    Raises:
      UserError: if none of our backbones has this many blocks or this width.
    """
    return _infer_vit(shapes) if "patch_embed.proj.weight" in shapes else _infer_resnet(shapes)


def _infer_resnet(shapes: Shapes) -> dict[str, dict]:
    sizes = tuple(
        len({m[1] for name in shapes if (m := re.match(rf"layer{stage}\.(\d+)\.", name))})
        for stage in range(1, 5)
    )
    num_stages = sum(size > 0 for size in sizes)
    block = Bottleneck if "layer1.0.conv3.weight" in shapes else BasicBlock
    found = [
        name
        for name, (of, stage_sizes) in RESNETS.items()
        if of is block and stage_sizes[:num_stages] == sizes[:num_stages]
    ]
    if not found or not num_stages:
        known = ", ".join(f"{name} {of[1]}" for name, of in RESNETS.items())
        raise UserError(
            f"a ResNet of {sizes} {block.__name__}s in its stages is not supported: give a "
            f"checkpoint of one of {known}"
        )
    width, _, *kernel = shapes["conv1.weight"]
    stem = "small" if kernel == [3, 3] else "imagenet"
    sizes = {"backbone": found[0], "num_stages": num_stages, "width": width, "stem": stem}
    return {"model": sizes, "views": {}}


def _infer_vit(shapes: Shapes) -> dict[str, dict]:
    width, _, side, _ = shapes["patch_embed.proj.weight"]
    depth = len({m[1] for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))})
    found = [name for name, (w, _, d) in VITS.items() if (w, d) == (width, depth)]
    if not found:
        known = ", ".join(f"{name} {w} x {d}" for name, (w, _, d) in VITS.items())
        raise UserError(
            f"a ViT of width {width} and depth {depth} is not supported: give a checkpoint of one "
            f"of {known}"
        )
    has_token = "cls_token" in shapes
    model = {
        "backbone": found[0],
        "patch_size": side,
        "pooling": "class_token" if has_token else "mean",
        "positions": "learned" if "pos_embed" in shapes else "fixed",
    }
    views = {}
    if "pos_embed" in shapes:
        views["size"] = side * round((shapes["pos_embed"][1] - has_token) ** 0.5)
    return {"model": model, "views": views}
