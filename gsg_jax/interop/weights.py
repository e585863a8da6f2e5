"""The network of a checkpoint file: the run that it would be, and its tensors as our trees."""

import dataclasses
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
from gsg_jax.console import UserError, say
from gsg_jax.interop.files import CheckpointFile, read_checkpoint
from gsg_jax.interop.known import LAYOUTS, Layout
from gsg_jax.interop.layouts import Found, backbone_alone, nearest_layout, recognise
from gsg_jax.interop.tensors import KINDS, Tensor
from gsg_jax.models.siamese import build_backbone
from gsg_jax.models.vit import VITS
from gsg_jax.run.files import read_object


class Network(NamedTuple):
    """What a checkpoint file holds, and the run that it would be.

    Attributes:
      file: the tensors.
      found: their layout.
      config_name: the config file of the run, with its recipe.
      plain: that config as it is.
      run: that config with the sizes of the network, resolved.
      about: what no tensor tells, and where it is from; a line for people.
    """

    file: CheckpointFile
    found: Found
    config_name: str
    plain: ml_collections.ConfigDict
    run: ml_collections.ConfigDict
    about: str


def read_network(path: pathlib.Path, config: ml_collections.ConfigDict) -> Network:
    """Reads a checkpoint file and recognises its network.

    How images are cut and normalised, and a ViT's number of heads, come from the config, else from
    the card (the file that an export writes beside its own, or config.json of its folder), else
    from what is known of the layout; all but the number of heads, at last from the recipe.

    Args:
      path: a file that read_checkpoint takes, or a folder of an export.
      config: from configs/import_torch.py.

    Raises:
      UserError: if the file cannot be read, has no known layout, lacks tensors or has unknown
        ones, or if the number of heads is unknown.
    """
    file = read_checkpoint(path / "model.safetensors" if path.is_dir() else path)
    has_classifier = "head.weight" in file.tensors
    try:
        source = nearest_layout(_shapes(file), default="torchvision" if config.prefix else "")
        if config.prefix or config.only_backbone:
            file = backbone_alone(file, config.prefix, only_backbone=config.only_backbone)
        layout = nearest_layout(_shapes(file))
        config_name = f"{config.method or LAYOUTS[layout].method}:{config.recipe}"
        run = load_config(config_name)
        found = recognise(_shapes(file), run.model)
        plain = run.copy_and_resolve_references()
        for group, values in found.overrides.items():
            run[group].update(values)
        source = LAYOUTS[source]
        if not has_classifier:
            source = dataclasses.replace(source, mean_and_std=None)
        about = _set_images_and_heads(run, source, found, path, config)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    check_pretraining(run)
    return Network(file, found, config_name, plain, resolve(run), about)


def _shapes(file: CheckpointFile) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in file.tensors.items()}


def _set_images_and_heads(
    run: ml_collections.ConfigDict,
    source: Layout,
    found: Found,
    path: pathlib.Path,
    config: ml_collections.ConfigDict,
) -> str:
    """Sets what no tensor tells; returns where it is from."""
    card, origin = _take_card(run, path), f"the recipe {config.recipe!r}"
    is_vit = run.model.backbone in VITS
    if card:
        origin = "the card"
    elif is_vit and source.mean_and_std:
        origin = "what ViTs with a classifier have in this layout, all but DeiT's"
        images = (source.mean_and_std,) * found.channels
        run.views.update({"mean": images, "std": images})
    given = {key: value for key, value in config.views.items() if value}
    run.views.update(given)
    if given:
        origin = f"--config.views and {origin}" if len(given) < 2 else "--config.views"
    if len(run.views.mean) not in (1, found.channels):
        raise UserError(
            f"the images have {found.channels} channel, and no card says their mean and std: give "
            "for example --config.views.mean=(0.5,) and --config.views.std=(0.25,)"
        )
    said, run.model.num_heads = "", config.model.num_heads
    if not is_vit and run.model.stem == "small":
        said = f"; the stem's stride is {run.model.stem_stride}"
    if is_vit:
        run.model.num_heads = config.model.num_heads or _known_heads(run, source, card)
        said = f"; {run.model.num_heads} heads"
        if run.model.num_heads == VITS[run.model.backbone][1]:
            run.model.num_heads = 0
    mean, std = (" ".join(f"{x:g}" for x in run.views[key]) for key in ("mean", "std"))
    return f"images of {run.views.size} pixels, mean {mean}, std {std}, by {origin}{said}"


def _known_heads(run: ml_collections.ConfigDict, source: Layout, card: Mapping[str, Any]) -> int:
    """The number of heads by the card, or by where the checkpoint is from."""
    of_timm = str(card.get("architecture")).startswith(f"{run.model.backbone}_patch")
    heads = card.get("sizes", {}).get("num_heads") or source.heads.get(run.model.backbone)
    heads = heads or (VITS[run.model.backbone][1] if of_timm else 0)
    if not heads:
        raise UserError(
            f"tensors do not tell how many attention heads this {run.model.backbone} has "
            "(vit_small: 6 in timm and DINO, 12 in MoCo v3): give --config.model.num_heads"
        )
    return heads


def read_backbone(
    path: pathlib.Path, config: ml_collections.ConfigDict
) -> tuple[ml_collections.ConfigDict, dict[str, Any], int]:
    """Reads the online backbone of a checkpoint file.

    Args:
      path: as in read_network.
      config: as in read_network.

    Returns:
      (run, variables, channels): the config of the run that it would be; {params, batch_stats} of
      the backbone, host arrays; the channels of its images.

    Raises:
      UserError: as in read_network, or if the tensors do not fit one another.
    """
    _, found, _, _, run, about = network = read_network(path, config)
    channels = found.channels
    shape = (1, run.views.size, run.views.size, channels)
    init = partial(build_backbone(run.model).init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), jnp.zeros(shape))
    groups = {group: {"backbone": tree} for group, tree in like.items()}
    check_tensors(groups, found, network.file.tensors, path)
    say(about)
    places = [tensor for tensor in found.tensors if tensor.path[0] == "backbone"]
    put(groups, places, network.file.tensors, found)
    return run, {"batch_stats": {}} | {g: tree["backbone"] for g, tree in groups.items()}, channels


def _take_card(run: ml_collections.ConfigDict, path: pathlib.Path) -> dict[str, Any]:
    """Sets what no tensor tells of a run to what an export has written, all but the heads.

    Returns:
      The card; {} if there is none.
    """
    card_path = path / "config.json" if path.is_dir() else path.with_name(f"{path.name}.json")
    if not card_path.is_file():
        return {}
    card = read_object(card_path)
    images = card.get("pretrained_cfg", card)
    try:
        run.views.update({"mean": tuple(images["mean"]), "std": tuple(images["std"])})
        run.views.size = (
            images["image_size"] if "image_size" in images else images["input_size"][-1]
        )
        run.data.crop = "host" if images.get("crop_pct", 0) < 1 else "device"
        sizes = card.get("sizes", {})
        run.model.update({key: sizes[key] for key in ("stem_stride", "bn_epsilon") if key in sizes})
        check_pretraining(run)
        if not isinstance(heads := sizes.get("num_heads", 0), int):
            raise TypeError(f"sizes.num_heads is {heads!r}")
    except (AttributeError, KeyError, TypeError, IndexError, UserError) as error:
        raise UserError(f"{card_path} is not the card of an export ({error})") from error
    return card


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
