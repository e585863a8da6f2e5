"""The card of exported weights: what they are, how well they do, and how to load them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from gsg_jax.data.crops import EVAL_RESIZE
from gsg_jax.interop.files import write_checkpoint
from gsg_jax.models.vit import VITS, num_heads
from gsg_jax.run.files import read_lines, read_object, write_atomically
from gsg_jax.run.workdir import IMPORTED

LICENCE = "Apache-2.0"  # of weights drawn here; those of a file keep their own
TIMM_VITS = (
    *("vit_tiny_patch16_224", "vit_tiny_patch16_384"),
    *("vit_small_patch8_224", "vit_small_patch16_224", "vit_small_patch16_384"),
    *("vit_small_patch32_224", "vit_small_patch32_384"),
    *("vit_base_patch8_224", "vit_base_patch16_224", "vit_base_patch16_384"),
    *("vit_base_patch32_224", "vit_base_patch32_384"),
)
RESNET_SIZES = ("width", "num_stages", "stem", "stem_stride", "bn_epsilon")
NOT_STOCK = "no library has a name for these sizes: build the network by hand"


def model_card(
    workdir: pathlib.Path,
    run: ml_collections.ConfigDict,
    step: int,
    layout: str,
    tensors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Describes exported weights for people and programs.

    Args:
      workdir: of the run.
      run: its config.
      step: of the checkpoint.
      layout: one of gsg_jax.jobs.export.EXPORTS.
      tensors: the exported weights.

    Returns:
      A JSON object: method, recipe, epochs, figures, mean, std and cut of the images, licence, and
      how to load the file.
    """
    is_foreign = (workdir / IMPORTED).is_dir() or bool(run.init_from)
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if line["step"] <= step]
    epochs = [line["epoch"] for line in lines if "epoch" in line]
    found = [line["knn_top1"] for line in lines if line.get("knn_top1") is not None]
    figures = {"knn_top1": found[-1]} if found else {}
    is_vit = run.model.backbone in VITS
    sizes = ("patch_size", "pooling", "positions") if is_vit else RESNET_SIZES
    evaluation = workdir / "evaluation.json"
    if evaluation.is_file():
        figures["evaluation"] = read_object(evaluation)
    return {
        "method": run.method.name,
        "recipe": run.recipe,
        "data": run.data.name,
        "step": step,
        "epochs": epochs[-1] if epochs else None,
        "backbone": run.model.backbone,
        "sizes": {name: run.model[name] for name in sizes}
        | ({"num_heads": num_heads(run.model)} if is_vit else {}),
        "architecture": architecture(run),
        "image_size": run.views.size,
        "mean": list(run.views.mean),
        "std": list(run.views.std),
        "crop_pct": 1 / EVAL_RESIZE if run.data.crop == "host" else 1.0,
        "num_tensors": len(tensors),
        "figures": figures,
        "licence": "that of the weights it began with" if is_foreign else LICENCE,
        "load": _how_to_load(layout, run),
    }


def architecture(run: ml_collections.ConfigDict) -> str | None:
    """Returns timm's and torchvision's name of the backbone; None if they have no such size."""
    model = run.model
    if model.backbone in VITS:
        name = f"{model.backbone}_patch{model.patch_size}_{run.views.size}"
        is_stock = name in TIMM_VITS and model.pooling == "class_token"
        return name if is_stock and num_heads(model) == VITS[model.backbone][1] else None
    is_stock = (model.width, model.num_stages, model.stem) == (64, 4, "imagenet")
    is_stock &= model.bn_epsilon == 1e-5
    return model.backbone if is_stock and model.backbone != "resnet10" else None


def _how_to_load(layout: str, run: ml_collections.ConfigDict) -> str:
    name = architecture(run)
    if layout == "reference":
        return "load the state dict by its names; heads are nn.Sequential"
    if layout == "detectron2":
        return "detectron2: MODEL.WEIGHTS FILE, PIXEL_MEAN and PIXEL_STD as here, times 255, RGB"
    if layout == "onnx":
        return "onnxruntime.InferenceSession(FILE).run(None, {'images': normalised N x C x H x W})"
    if name is None:
        return f"{NOT_STOCK}; then load_state_dict, without a classifier"
    if layout == "timm":
        return f"timm.create_model({name!r}, num_classes=0, checkpoint_path=FILE)"
    return f"model = torchvision.models.{name}(); model.fc = torch.nn.Identity(); then strict=True"


def write_folder(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
    run: ml_collections.ConfigDict,
) -> list[pathlib.Path]:
    """Writes a folder for timm and Hugging Face's hub: weights, config and model card.

    Args:
      folder: where to write; it is created.
      tensors: by timm's names.
      card: from model_card.
      run: the run's config.

    Returns:
      The files: model.safetensors, config.json, README.md.
    """
    weights = folder / "model.safetensors"
    write_checkpoint(tensors, weights)
    size = card["image_size"]
    channels = tensors.get("conv1.weight", tensors.get("patch_embed.proj.weight")).shape[1]
    settings = {
        "architecture": card["architecture"],
        "num_classes": 0,
        "num_features": [len(array) for array in tensors.values() if array.ndim == 1][-1],
        "pretrained_cfg": {
            "input_size": [channels, size, size],
            "fixed_input_size": run.model.backbone in VITS,
            "interpolation": "bilinear",
            "crop_pct": card["crop_pct"],
            "mean": card["mean"],
            "std": card["std"],
            "num_classes": 0,
        },
    }
    write_atomically(folder / "config.json", json.dumps(settings, indent=2) + "\n")
    write_atomically(folder / "README.md", _readme(card))
    return [weights, folder / "config.json", folder / "README.md"]


def _readme(card: Mapping[str, Any]) -> str:
    """The model card for Hugging Face's hub: front matter, then the facts."""
    tag = "apache-2.0" if card["licence"] == LICENCE else "other"
    figures = card["figures"].get("knn_top1")
    return f"""---
library_name: timm
license: {tag}
pipeline_tag: image-feature-extraction
---

# {card["backbone"]} by {card["method"]}

Pretrained without labels by gsg_jax; the pooled features of the backbone, no classifier.

| | |
|---|---|
| method, recipe | {card["method"]}, {card["recipe"]} |
| images | {card["data"]}, {card["image_size"]} pixels |
| steps, epochs | {card["step"]}, {_or_unknown(card["epochs"])} |
| k-NN top-1 of the run's log | {_or_unknown(figures)} |
| mean, std | {card["mean"]}, {card["std"]} |
| licence | {card["licence"]} |

Load: `{card["load"]}`
"""


def _or_unknown(value: Any) -> str:
    return "not known" if value is None else f"{value:g}"
