"""The tensors of a PyTorch checkpoint: which layout they have, and which of ours each becomes."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from gsg_jax.console import UserError
from gsg_jax.interop.backbones import Shapes, backbone_tensors, infer_backbone
from gsg_jax.interop.files import WRAPPED, CheckpointFile
from gsg_jax.interop.heads import (
    check_travels,
    has_known_heads,
    infer_predictor,
    infer_projector,
    predictor_tensors,
    projector_tensors,
)
from gsg_jax.interop.known import EITHER, LAYOUTS, NUMBERED, VIT, Layout, torch_children
from gsg_jax.interop.tensors import KINDS, Tensor
from gsg_jax.models.siamese import image_channels

COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Found:
    """The content of a state dict.

    Attributes:
      layout: one of LAYOUTS.
      tensors: those that have a place in our network; paths begin with the branch.
      target_tensors: the same of the EMA target.
      overrides: keys that the run's config needs, {"model": {...}, "views": {...}}.
      channels: of the images.
      last_biases: {name of a projector's last bias: name of the running mean that takes it in}.
    """

    layout: str
    tensors: list[Tensor]
    target_tensors: list[Tensor]
    overrides: dict[str, dict]
    channels: int
    last_biases: dict[str, str]


def recognise(shapes: Shapes, model: ml_collections.ConfigDict) -> Found:
    """Finds the layout of a state dict, and where its tensors go.

    Args:
      shapes: of all tensors, by name.
      model: the config group, for what the tensors do not determine.

    Returns:
      Its content.

    Raises:
      UserError: if no layout fits, or tensors are missing or unknown; the first are named.
    """
    name = nearest_layout(shapes)
    layout = LAYOUTS[name]
    backbone = _below(shapes, layout.backbone, layout.is_numbered)
    is_vit = any(re.match(VIT, key) for key in backbone)
    first = "patch_embed.proj.weight" if is_vit else "conv1.weight"
    if first not in backbone:
        raise _unfit(name, missing=[layout.backbone + first], unknown=[])
    if len(backbone[first]) != 4 or backbone[first][1] not in (1, 3):
        raise UserError(
            f"{layout.backbone}{first} is {backbone[first]}: it must be [out, channels, height, "
            "width], of images with 1 or 3 channels"
        )
    overrides = infer_backbone(backbone)
    model = model.copy_and_resolve_references()
    model.update(overrides["model"])
    channels = backbone[first][1]

    last_biases = {}
    branches = {"backbone": backbone_tensors(model, channels)}
    target = layout.target_backbone
    has_target = target is not None and _num_named(shapes, target, layout.names) > 0
    for branch in ("projector", "predictor"):
        head = _infer_head(branch, shapes, layout)
        if head is None or not has_known_heads(model):
            continue  # the run's own head is initialised anew
        overrides["model"].update(head.model)
        model.update(head.model)
        branches[branch] = _head_tensors(branch, model, layout)
        if head.last_bias:
            mean = [t.name for t in branches[branch] if t.name.endswith("running_mean")][-1]
            for prefix in (layout.projector, layout.target_projector if has_target else None):
                if prefix is not None:
                    norm = mean if layout.last_norm else prefix + mean
                    last_biases[prefix + head.last_bias] = norm

    tensors = list(_placed(branches, layout))
    target_tensors = list(_placed(branches, layout, "target_")) if has_target else []
    _check_names(name, shapes, [t.name for t in tensors + target_tensors], last_biases)
    return Found(name, tensors, target_tensors, overrides, channels, last_biases)


def nearest_layout(shapes: Shapes, default: str = "") -> str:
    """Returns the layout that matches the most names of a backbone, and then of all others.

    Args:
      shapes: of all tensors, by name.
      default: the layout if no name matches any; "" if that is an error.

    Returns:
      One of LAYOUTS.

    Raises:
      UserError: if no name matches any.
    """
    counts = {
        name: (
            _num_named(shapes, layout.backbone, layout.names),
            sum(_is_beside(key, layout) for key in shapes),
        )
        for name, layout in LAYOUTS.items()
    }
    name = max(counts, key=counts.get)
    if not counts[name][0] and default:
        return default
    if not counts[name][0]:
        raise UserError(
            f"its {len(shapes)} tensors ({_first(list(shapes))}) are of no known layout: "
            f"give a checkpoint of one of {', '.join(LAYOUTS)}, or --config.prefix=NAME. of the "
            "backbone's names"
        )
    return name


def backbone_alone(file: CheckpointFile, prefix: str, *, only_backbone: bool) -> CheckpointFile:
    """Selects what lies below a prefix, by its names there.

    Args:
      file: all tensors.
      prefix: of the backbone's names; "" for that of the nearest layout.
      only_backbone: whether tensors besides the backbone's are left out.

    Raises:
      UserError: if no name has the prefix, or some lack it and must not be left out.
    """
    names = list(file.tensors)
    if not prefix:
        prefix = LAYOUTS[
            nearest_layout({name: x.shape for name, x in file.tensors.items()})
        ].backbone
    elif not prefix.endswith("."):
        prefix += "."
    prefix = re.sub(WRAPPED, "", prefix)
    below = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if not below:
        raise UserError(
            f"--config.prefix={prefix}: begins none of its {len(names)} names, such as "
            f"{_first(names)}"
        )
    if not any(re.match(EITHER, new) for new in below.values()):
        below = {name: torch_children(new) for name, new in below.items()}
    if only_backbone:
        below = {name: new for name, new in below.items() if re.match(EITHER, new)}
    elif others := [name for name in names if name not in below]:
        raise UserError(
            f"besides --config.prefix={prefix} the file has {_first(others)}: leave them out by "
            "--config.only_backbone=true"
        )
    return file.renamed(below)


def to_tensors(
    layout: str, variables: Mapping[str, Any], run: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
    """Writes a network as the state dict of a layout.

    Args:
      layout: one of LAYOUTS.
      variables: {params, batch_stats, target_params, target_batch_stats} of a TrainState; groups
        and branches that the layout has no names for are left out.
      run: its config.

    Returns:
      Arrays in PyTorch's layout and order, by name, with BatchNorm's counters (0).

    Raises:
      UserError: if the layout has no names for the network.
    """
    names = LAYOUTS[layout]
    channels = image_channels(run, variables["params"]["backbone"])
    branches = {"backbone": backbone_tensors(run.model, channels)}
    for branch in ("projector", "predictor"):
        if getattr(names, branch) is not None and branch in variables["params"]:
            branches[branch] = _head_tensors(branch, run.model, names)
    written = _written(_placed(branches, names), variables, "")
    targets = {b: branches[b] for b in branches if b in variables.get("target_params", ())}
    return written | _written(_placed(targets, names, "target_"), variables, "target_")


def _written(
    tensors: Iterator[Tensor], variables: Mapping[str, Any], of: str
) -> dict[str, np.ndarray]:
    written = {}
    for tensor in tensors:
        array = variables[of + tensor.group]
        for key in tensor.path:
            array = array[key]
        written[tensor.name] = np.ascontiguousarray(KINDS[tensor.kind].to_torch(np.asarray(array)))
        if tensor.name.endswith("running_var"):
            written[tensor.name.removesuffix("running_var") + COUNTER] = np.zeros((), np.int64)
    return written


def _placed(branches: Mapping[str, list[Tensor]], layout: Layout, of: str = "") -> Iterator[Tensor]:
    """The tensors of the branches that a layout has, each with its prefix and below its branch."""
    for branch, tensors in branches.items():
        prefix = getattr(layout, of + branch, None)
        if prefix is None:
            continue
        for tensor in tensors:
            name = tensor.name
            if branch == "backbone" and layout.is_numbered:
                head, _, rest = name.partition(".")
                tensor = tensor._replace(name=f"{NUMBERED[head]}.{rest}")
            is_apart = branch == "projector" and name.startswith(f"{layout.last_norm}.")
            yield tensor.below("" if layout.last_norm and is_apart else prefix, branch)


def _below(shapes: Shapes, prefix: str, is_numbered: bool = False) -> dict[str, tuple[int, ...]]:
    """The shapes below a prefix, by names without it."""
    below = {key.removeprefix(prefix): s for key, s in shapes.items() if key.startswith(prefix)}
    return {torch_children(key): s for key, s in below.items()} if is_numbered else below


def _num_named(shapes: Shapes, prefix: str, names: str) -> int:
    return sum(bool(re.match(re.escape(prefix) + names, key)) for key in shapes)


def _infer_head(branch: str, shapes: Shapes, layout: Layout):
    prefix = getattr(layout, branch)
    if prefix is None:
        return None
    head = _below(shapes, prefix)
    if branch == "predictor":
        return infer_predictor(head)
    if layout.last_norm:
        head |= {key: s for key, s in shapes.items() if key.startswith(f"{layout.last_norm}.")}
    return infer_projector(head, layout.last_norm)


def _head_tensors(branch: str, model: ml_collections.ConfigDict, layout: Layout) -> list[Tensor]:
    check_travels(model)
    if branch == "predictor":
        return predictor_tensors()
    return projector_tensors(model.projector_layers, layout.last_norm)


def _check_names(
    name: str, shapes: Shapes, placed: list[str], last_biases: Mapping[str, str]
) -> None:
    """Raises UserError if a tensor is missing, or is unknown in the layout."""
    layout, known = LAYOUTS[name], {*placed, *last_biases}
    missing = [key for key in placed if key not in shapes]

    def is_known(key: str) -> bool:
        if key.endswith(COUNTER) and key.removesuffix(COUNTER) + "running_mean" in shapes:
            return True
        return key in known or _is_beside(key, layout)

    unknown = [key for key in shapes if not is_known(key)]
    if missing or unknown:
        raise _unfit(name, missing, unknown)


def _is_beside(key: str, layout: Layout) -> bool:
    """Whether a name is in the layout but outside the backbones: of a head, or of no use here."""
    heads = (layout.projector, layout.predictor, layout.target_projector)
    is_in_head = any(key.startswith(prefix) for prefix in heads if prefix)
    is_last_norm = bool(layout.last_norm) and key.startswith(f"{layout.last_norm}.")
    return is_in_head or is_last_norm or bool(re.fullmatch(layout.others, key))


def _unfit(name: str, missing: list[str], unknown: list[str]) -> UserError:
    said = [f"lacks {_first(missing)}"] if missing else []
    said += [f"has {_first(unknown)}, unknown there"] if unknown else []
    only = "" if missing else ", or leave them out by --config.only_backbone=true"
    return UserError(
        f"the nearest layout is {name!r}; the file {' and '.join(said)}: give a whole checkpoint "
        f"of one of {', '.join(LAYOUTS)}{only}"
    )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    shown = [name if len(name) < 80 else f"{name[:76]} ..." for name in names[:3]]
    return ", ".join(shown) + more
