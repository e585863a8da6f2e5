"""The network of a checkpoint file: the run that it would be, and its tensors as our trees."""

import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, resolve
from gsg_jax.console import UserError
from gsg_jax.interop.files import CheckpointFile, read_checkpoint
from gsg_jax.interop.layouts import LAYOUTS, Found, nearest_layout, recognise
from gsg_jax.interop.tensors import KINDS, Tensor
from gsg_jax.models.siamese import build_backbone
from gsg_jax.run.files import read_object

RECIPE = "imagenet"  # what the tensors do not tell, if no other recipe is given


class Network(NamedTuple):
    """What a checkpoint file holds, and the run that it would be.

    Attributes:
      file: the tensors.
      found: their layout.
      config_name: the config file of the run, with its recipe.
      plain: that config as it is.
      run: that config with the sizes of the network, resolved.
    """

    file: CheckpointFile
    found: Found
    config_name: str
    plain: ml_collections.ConfigDict
    run: ml_collections.ConfigDict


def read_network(path: pathlib.Path, method: str = "", recipe: str = RECIPE) -> Network:
    """Reads a checkpoint file and recognises its network.

    Args:
      path: of the file.
      method: of the run; "" for the layout's.
      recipe: gives what the tensors do not.

    Raises:
      UserError: if the file cannot be read, has no known layout, or lacks tensors or has unknown
        ones.
    """
    file = read_checkpoint(path)
    shapes = {name: array.shape for name, array in file.tensors.items()}
    try:
        layout = nearest_layout(shapes)
        config_name = f"{method or LAYOUTS[layout].method}:{recipe}"
        run = load_config(config_name)
        found = recognise(shapes, run.model)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    plain = run.copy_and_resolve_references()
    for group, values in found.overrides.items():
        run[group].update(values)
    check_pretraining(run)
    return Network(file, found, config_name, plain, resolve(run))


def read_backbone(path: pathlib.Path) -> tuple[ml_collections.ConfigDict, dict[str, Any], int]:
    """Reads the online backbone of a checkpoint file.

    The card that an export writes beside its file, or config.json of an exported folder, says how
    images are cut and normalised; without one it is as on ImageNet.

    Args:
      path: a file that read_checkpoint takes, or a folder of an export.

    Returns:
      (run, variables, channels): the config of the run that it would be; {params, batch_stats} of
      the backbone, host arrays; the channels of its images.

    Raises:
      UserError: as in read_network, or if the tensors do not fit one another.
    """
    weights = path / "model.safetensors" if path.is_dir() else path
    _, found, _, _, run = network = read_network(weights)
    channels = found.channels
    _take_card(run, path, channels)
    shape = (1, run.views.size, run.views.size, channels)
    init = partial(build_backbone(run.model).init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), jnp.zeros(shape))
    groups = {group: {"backbone": tree} for group, tree in like.items()}
    check_tensors(groups, found, network.file.tensors, weights)
    places = [tensor for tensor in found.tensors if tensor.path[0] == "backbone"]
    put(groups, places, network.file.tensors, found)
    return run, {"batch_stats": {}} | {g: tree["backbone"] for g, tree in groups.items()}, channels


def _take_card(run: ml_collections.ConfigDict, path: pathlib.Path, channels: int) -> None:
    """Sets how a run cuts and normalises its images to what an export has written."""
    card_path = path / "config.json" if path.is_dir() else path.with_name(f"{path.name}.json")
    if card_path.is_file():
        card = read_object(card_path)
        card = card.get("pretrained_cfg", card)
        try:
            run.views.update({"mean": tuple(card["mean"]), "std": tuple(card["std"])})
            run.views.size = card["image_size"] if "image_size" in card else card["input_size"][-1]
            run.data.crop = "host" if card.get("crop_pct", 0) < 1 else "device"
            check_pretraining(run)
        except (KeyError, TypeError, IndexError, UserError) as error:
            raise UserError(f"{card_path} is not the card of an export ({error})") from error
    if len(run.views.mean) not in (1, channels):
        raise UserError(
            f"{path}: the images have {channels} channel, and no card says their mean and std: "
            "import the file by configs/import_torch.py:default, and load that run"
        )


def put(
    groups: dict[str, Any],
    places: list[Tensor],
    tensors: Mapping[str, np.ndarray],
    found: Found,
) -> set[str]:
    """Puts tensors into trees, which it changes; returns their names."""
    biases = {mean: bias for bias, mean in found.last_biases.items()}
    for tensor in places:
        array = KINDS[tensor.kind].to_flax(tensors[tensor.name])
        if tensor.name in biases:  # the norm subtracts a mean with that bias in it
            array = array - tensors[biases[tensor.name]]
        tree = groups[tensor.group]
        for key in tensor.path[:-1]:
            tree = tree[key]
        tree[tensor.path[-1]] = array
    return {tensor.name for tensor in places}


def check_tensors(
    like: Mapping[str, Any], found: Found, tensors: Mapping[str, np.ndarray], path: pathlib.Path
) -> None:
    """Raises UserError if a tensor is not finite floats of the network that the names describe.

    Args:
      like: {params, batch_stats} of some of the branches, arrays or shapes.
      found: the layout of the tensors.
      tensors: by name.
      path: of their file.
    """
    wrong = []
    for tensor in [*found.tensors, *found.target_tensors]:
        array, here = tensors[tensor.name], like[tensor.group]
        if array.dtype != np.float32:
            raise UserError(f"{path}: {tensor.name} is {array.dtype}: give floats")
        if not np.isfinite(array).all():
            raise UserError(
                f"{path}: {tensor.name} holds NaN or inf, or is beyond float32: give a checkpoint "
                "from before the training diverged"
            )
        if tensor.path[0] not in here:
            continue
        for key in tensor.path:
            here = here[key]
        expected = jax.eval_shape(KINDS[tensor.kind].to_torch, here).shape
        if expected != array.shape:
            wrong.append(f"{tensor.name} is {array.shape}, not {expected}")
    if wrong:
        more = f", and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise UserError(
            f"{path}: {wrong[0]}{more}: the checkpoint is not of the network that its names "
            "describe; give one of our ResNets or ViTs"
        )
