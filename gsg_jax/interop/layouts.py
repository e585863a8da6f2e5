"""LAYOUTS: how PyTorch checkpoints name their branches, and which of ours each becomes."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from gsg_jax.console import UserError
from gsg_jax.interop.backbones import Shapes, backbone_tensors, infer_backbone
from gsg_jax.interop.heads import (
    check_travels,
    infer_predictor,
    infer_projector,
    predictor_tensors,
    projector_tensors,
)
from gsg_jax.interop.tensors import KINDS, Tensor
from gsg_jax.models.siamese import image_channels

COUNTER = "num_batches_tracked"
STAGES = {f"layer{stage}": f"{stage + 3}" for stage in range(1, 5)}
NUMBERED = {"conv1": "0", "bn1": "1", **STAGES}  # in an nn.Sequential of a ResNet's children
RESNET = r"(conv1|bn1|layer\d\.\d+)\."
VIT = r"(cls_token$|pos_embed$|(patch_embed|blocks|norm)\.)"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint names its branches; the prefix of a missing branch is None.

    Attributes:
      method: the method of a run of these weights, if none is given.
      backbone: prefix of the online backbone.
      projector: of the online projector.
      last_norm: name of the projector's last norm if it stands by itself.
      predictor: of the predictor.
      target_backbone: of the EMA target's backbone.
      target_projector: of the EMA target's projector.
      names: pattern of the backbone's names, by which the layout is recognised.
      is_numbered: whether the backbone is an nn.Sequential of a ResNet's children.
      others: pattern of tensors that have no use here; they are kept for an export.
    """

    method: str
    backbone: str
    projector: str | None = None
    last_norm: str = ""
    predictor: str | None = None
    target_backbone: str | None = None
    target_projector: str | None = None
    names: str = RESNET
    is_numbered: bool = False
    others: str = "$^"


LAYOUTS = {
    "torchvision": Layout("simsiam_gsg", "", others=r"fc\.(weight|bias)"),
    "timm": Layout("simsiam_gsg", "", names=VIT, others=r"(head|fc)\.(weight|bias)"),
    "simsiam": Layout(
        "simsiam",
        "encoder.",
        projector="encoder.fc.",
        predictor="predictor.",
        target_backbone="encoder_momentum.",
        target_projector="encoder_momentum.fc.",
    ),
    "moco": Layout(
        "moco_v2",
        "encoder_q.",
        projector="encoder_q.fc.",
        target_backbone="encoder_k.",
        target_projector="encoder_k.fc.",
        others="queue|queue_ptr",
    ),
    "vicreg": Layout("vicreg", "backbone.", projector="projector."),
    "barlow_twins": Layout("barlow_twins", "backbone.", projector="projector.", last_norm="bn"),
    "unigrad": Layout(
        "unigrad",
        "encoder.",
        projector="projector.",
        predictor="predictor.",
        target_backbone="momentum_encoder.",
        target_projector="momentum_projector.",
        names=r"[0-7]\.",
        is_numbered=True,
    ),
}


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
    first = "patch_embed.proj.weight" if layout.names == VIT else "conv1.weight"
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
        if head is None or model.head_norm != "batch" or model.num_prototypes:
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


def nearest_layout(shapes: Shapes) -> str:
    """Returns the layout that matches the most names.

    Args:
      shapes: of all tensors, by name.

    Returns:
      One of LAYOUTS.

    Raises:
      UserError: if no name matches any.
    """
    counts = {
        name: _num_named(shapes, layout.backbone, layout.names)
        + any(key.startswith(layout.last_norm + ".") for key in shapes if layout.last_norm)
        for name, layout in LAYOUTS.items()
    }
    name = max(counts, key=counts.get)
    if not counts[name]:
        raise UserError(
            f"its {len(shapes)} tensors ({_first(list(shapes))}) are of no known layout: "
            f"give a checkpoint of one of {', '.join(LAYOUTS)}"
        )
    return name


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
    channels = image_channels(run.model, variables["params"]["backbone"])
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
    children = {number: child for child, number in NUMBERED.items()} if is_numbered else {}
    return {
        re.sub(r"^\d+(?=\.)", lambda number: children.get(number[0], number[0]), key): shape
        for key, shape in below.items()
    }


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
    heads = [layout.projector, layout.predictor, layout.target_projector]
    prefixes = tuple(prefix for prefix in heads if prefix)

    def is_known(key: str) -> bool:
        if key in known or re.fullmatch(layout.others, key):
            return True
        if key.endswith(COUNTER):
            return key.removesuffix(COUNTER) + "running_mean" in shapes
        return key.startswith(prefixes) if prefixes else False  # a head of another kind

    unknown = [key for key in shapes if not is_known(key)]
    if missing or unknown:
        raise _unfit(name, missing, unknown)


def _unfit(name: str, missing: list[str], unknown: list[str]) -> UserError:
    said = [f"lacks {_first(missing)}"] if missing else []
    said += [f"has {_first(unknown)}, unknown there"] if unknown else []
    return UserError(
        f"the nearest layout is {name!r}; the file {' and '.join(said)}: give a whole checkpoint "
        f"of one of {', '.join(LAYOUTS)}"
    )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    shown = [name if len(name) < 80 else f"{name[:76]} ..." for name in names[:3]]
    return ", ".join(shown) + more
