"""The export job: a run's weights for PyTorch, with a card that describes them."""

import json
import pathlib
from typing import Any

import ml_collections
import numpy as np

from gsg_jax.console import UsageError, UserError, given_path, say
from gsg_jax.evaluation.encoder import read_record
from gsg_jax.interop.backbones import fixed_positions
from gsg_jax.interop.card import model_card, write_folder
from gsg_jax.interop.detectron import detectron_tensors, write_detectron
from gsg_jax.interop.files import PARALLEL, write_checkpoint
from gsg_jax.interop.imported import as_imported, read_imported, with_rest
from gsg_jax.interop.layouts import to_tensors
from gsg_jax.interop.onnx_graph import write_onnx
from gsg_jax.models.resnet import RESNETS
from gsg_jax.models.vit import VITS
from gsg_jax.run.checkpoint import read_variables
from gsg_jax.run.files import write_atomically

EXPORTS = ("torchvision", "timm", "reference", "detectron2", "onnx")
SUFFIXES = {"detectron2": (".pkl",), "onnx": (".onnx",)}


def export_weights(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Writes the newest checkpoint of a run in a layout of PyTorch's libraries, to config.output.

    Returns:
      The job's last line: the layout, the files, and how many tensors they hold.

    Raises:
      UserError: if there is no checkpoint, or the layout has no names for the network.
    """
    del workdir
    output = _checked_output(config)
    folder = given_path("--config.pretrained", config.pretrained)
    run = read_record(folder)
    layout = _checked_layout(config.layout, run, folder)
    step, variables = read_variables(folder)
    wrapper = ""
    if config.layout == "reference":
        tensors, wrapper = _as_reference(layout, variables, step, run, folder)
    else:
        tensors = to_tensors(layout, variables, run)
        if layout == "timm" and run.model.positions == "fixed":
            tensors = {"pos_embed": fixed_positions(run)} | tensors
    if config.layout == "detectron2":
        tensors = detectron_tensors(tensors)
    card = model_card(folder, run, step, config.layout, tensors)
    if not output.suffix and card["architecture"] is None:
        raise UserError(
            f"--config.output={config.output}: timm has no {run.model.backbone} of these sizes and "
            "could not load a folder; give a file"
        )
    files = [output, _card_path(output)]
    if not output.suffix:
        files = write_folder(output, tensors, card, run)
    elif config.layout == "detectron2":
        write_detectron(tensors, output)
    elif config.layout == "onnx":
        write_onnx(tensors, run, output)
    else:
        write_checkpoint(tensors, output, wrapper)
    if output.suffix:
        write_atomically(_card_path(output), json.dumps(card, indent=2) + "\n")
    say(card["load"])
    return {
        "job": "export",
        "method": run.method.name,
        "step": step,
        "layout": layout if config.layout == "reference" else config.layout,
        "num_tensors": len(tensors),
        "files": [str(path) for path in files],
    }


def _as_reference(
    layout: str,
    variables: dict[str, Any],
    step: int,
    run: ml_collections.ConfigDict,
    folder: pathlib.Path,
) -> tuple[dict[str, np.ndarray], str]:
    """A whole state dict and the key it lies under, as in the file that the run came from."""
    about = read_imported(folder)
    if about is None:
        return to_tensors(layout, variables, run), "state_dict"
    if step == 0:  # untouched: all that was imported comes back
        tensors = to_tensors(layout, as_imported(variables, about), run)
        tensors = with_rest(tensors, folder)
    else:
        tensors = to_tensors(layout, variables, run)
    prefix, names = PARALLEL * about["is_parallel"], about.get("names", {})
    tensors = {names.get(name, prefix + name): array for name, array in tensors.items()}
    return tensors, about["wrapper"]


def _checked_output(config: ml_collections.ConfigDict) -> pathlib.Path:
    if config.layout not in EXPORTS:
        raise UsageError(f"--config.layout={config.layout}: take one of {', '.join(EXPORTS)}")
    if not config.output:
        raise UsageError("--config.output is missing: give a file to write, or a folder")
    if not config.pretrained:
        raise UsageError("--config.pretrained is missing: give the --workdir of a run")
    output = given_path("--config.output", config.output)
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
                f"--config.output={config.output}: {path} is there already; give another name"
            )
    return output


def _card_path(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(output.name + ".json")


def _checked_layout(name: str, run: ml_collections.ConfigDict, folder: pathlib.Path) -> str:
    """Returns which of LAYOUTS an export takes."""
    is_vit = run.model.backbone in VITS
    if not is_vit and run.model.backbone not in RESNETS:
        raise UserError(f"{run.model.backbone}: a custom backbone, for which no layout has names")
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
