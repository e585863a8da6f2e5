"""The export job: a run's weights for PyTorch, with a card that says what they are."""

import json
import pathlib
from typing import Any

import ml_collections

from gsg_jax.console import UsageError, UserError, say
from gsg_jax.evaluation.encoder import read_record
from gsg_jax.interop.backbones import fixed_positions
from gsg_jax.interop.card import model_card, write_folder
from gsg_jax.interop.detectron import detectron_tensors, write_detectron
from gsg_jax.interop.files import PARALLEL, write_checkpoint
from gsg_jax.interop.imported import as_imported, read_imported, with_rest
from gsg_jax.interop.layouts import to_tensors
from gsg_jax.interop.onnx_graph import write_onnx
from gsg_jax.models.vit import VITS
from gsg_jax.run.checkpoint import read_variables
from gsg_jax.run.files import write_atomically
from gsg_jax.run.workdir import given_path

EXPORTS = ("torchvision", "timm", "reference", "detectron2", "onnx")
SUFFIXES = {"detectron2": (".pkl",), "onnx": (".onnx",)}


def export_weights(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Writes the newest checkpoint of a run in a layout of PyTorch's libraries.

    Args:
      config: of configs/export.py.
      workdir: not read; the file lands in config.output.

    Returns:
      The job's last line: the layout, the file, its card, and how many tensors it holds.

    Raises:
      UserError: where there is no checkpoint, or the layout has no names for the network.
    """
    del workdir
    output = _checked_output(config)
    folder = given_path("pretrained", config.pretrained)
    run = read_record(folder)
    layout = _checked_layout(config.layout, run, folder)
    step, variables = read_variables(folder)
    about = read_imported(folder)
    is_untouched = step == 0 and about is not None
    if is_untouched and config.layout == "reference":
        tensors = to_tensors(layout, as_imported(variables, about), run)
        tensors = with_rest(tensors, folder, about)
    else:
        tensors = to_tensors(layout, variables, run)
    wrapper = ""
    if config.layout == "reference":
        wrapper = about["wrapper"] if about else "state_dict"
        if about and about["is_parallel"]:
            tensors = {PARALLEL + name: array for name, array in tensors.items()}
    if layout == "timm" and config.layout != "reference" and run.model.positions == "fixed":
        tensors = {"pos_embed": fixed_positions(run)} | tensors
    if config.layout == "detectron2":
        tensors = detectron_tensors(tensors)
    card = model_card(folder, run, step, config.layout, tensors)
    if not output.suffix and card["architecture"] is None:
        raise UserError(
            f"--config.output={config.output}: timm has no {run.model.backbone} of these sizes, so "
            "that no folder of its could be loaded; give a file"
        )
    if output.suffix:
        if config.layout == "detectron2":
            write_detectron(tensors, output)
        elif config.layout == "onnx":
            write_onnx(tensors, run, output)
        else:
            write_checkpoint(tensors, output, wrapper)
        card_path = _card_path(output)
        write_atomically(card_path, json.dumps(card, indent=2) + "\n")
        files = [str(output), str(card_path)]
    else:
        files = [str(path) for path in write_folder(output, tensors, card, run)]
    say(card["load"])
    return {
        "job": "export",
        "method": run.method.name,
        "step": step,
        "layout": layout if config.layout == "reference" else config.layout,
        "num_tensors": len(tensors),
        "files": files,
    }


def _checked_output(config: ml_collections.ConfigDict) -> pathlib.Path:
    if config.layout not in EXPORTS:
        raise UsageError(f"--config.layout={config.layout}: take one of {', '.join(EXPORTS)}")
    if not config.output:
        raise UsageError("--config.output is missing: give a file to write, or a folder")
    if not config.pretrained:
        raise UsageError("--config.pretrained is missing: give the --workdir of a run")
    output = given_path("output", config.output)
    suffixes = SUFFIXES.get(config.layout, (".safetensors", ".pth"))
    is_folder = not output.suffix and config.layout == "timm"
    if output.suffix not in suffixes and not is_folder:
        folder = ", or a folder (a name without a dot)" if config.layout == "timm" else ""
        raise UsageError(
            f"--config.output={config.output}: {config.layout} is written to "
            f"{' or '.join(suffixes)}{folder}"
        )
    for path in (output, _card_path(output)):
        if path.exists():
            raise UsageError(
                f"--config.output={config.output}: {path} is there already; give another"
            )
    return output


def _card_path(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(output.name + ".json")


def _checked_layout(name: str, run: ml_collections.ConfigDict, folder: pathlib.Path) -> str:
    """The one of LAYOUTS that an export takes."""
    is_vit = run.model.backbone in VITS
    if name == "reference":
        about = read_imported(folder)
        layout = about["layout"] if about else "simsiam"
        if is_vit and layout == "simsiam":
            raise UserError(
                f"{run.model.backbone}: the reference's layout has no ViT; take "
                "--config.layout=timm"
            )
        return layout
    if is_vit and name not in ("timm", "onnx"):
        raise UserError(f"{run.model.backbone}: {name} has no such ViT; take --config.layout=timm")
    if name not in ("timm", "onnx") and run.model.num_stages != 4:
        raise UserError(
            f"model.num_stages is {run.model.num_stages}: {name}'s ResNets have 4 stages; take "
            "--config.layout=reference"
        )
    return "timm" if is_vit else "torchvision"
