"""LAYOUTS: how PyTorch checkpoints name their branches."""

import dataclasses
from collections.abc import Mapping

STAGES = {f"layer{stage}": f"{stage + 3}" for stage in range(1, 5)}
NUMBERED = {"conv1": "0", "bn1": "1", **STAGES}  # in an nn.Sequential of a ResNet's children
RESNET = r"(?:conv1|bn1|layer\d\.\d+)\."
VIT = r"(?:cls_token$|pos_embed$|(?:patch_embed|blocks|norm)\.)"
EITHER = f"(?:{RESNET}|{VIT})"
IN_SEQUENTIAL = r"[0-7]\."

# Attention heads of the sizes that have the same number wherever published, unlike vit_small.
ANYWHERE = {"vit_tiny": 3, "vit_base": 12}


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
      heads: attention heads of the ViTs that are published in this layout.
      mean_and_std: of each channel of the images of its ViTs that have a classifier; all others
        take ImageNet's: DINO, MoCo v3 and MAE publish ViTs by timm's names without one.
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
    heads: Mapping[str, int] = dataclasses.field(default_factory=lambda: ANYWHERE)
    mean_and_std: float | None = None


LAYOUTS = {
    "torchvision": Layout("simsiam_gsg", "", others=r"fc\.(weight|bias)"),
    "timm": Layout(
        "simsiam_gsg",
        "",
        names=VIT,
        others=r"(head|fc)\.(weight|bias)",
        heads=ANYWHERE | {"vit_micro": 3},  # our own, in exports only
        mean_and_std=0.5,
    ),
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
    "moco_v3": Layout(
        "moco_v2",
        "base_encoder.",
        target_backbone="momentum_encoder.",
        names=EITHER,
        others=r"((base|momentum)_encoder\.(head|fc)|predictor)\..*",
        heads={"vit_small": 12, "vit_base": 12},
    ),
    "vicreg": Layout("vicreg", "backbone.", projector="projector."),
    "barlow_twins": Layout("barlow_twins", "backbone.", projector="projector.", last_norm="bn"),
    "solo_learn": Layout(
        "simsiam_gsg",
        "backbone.",
        names=EITHER,
        others=r"(classifier|projector|predictor|prototypes|queue|momentum_\w+)\b.*",
    ),
    "dino": Layout(
        "dino",
        "backbone.",
        names=EITHER,
        others=r"head\..*",
        heads=ANYWHERE | {"vit_small": 6},
    ),
    "lightly": Layout(
        "simsiam_gsg",
        "backbone.",
        names=IN_SEQUENTIAL,
        is_numbered=True,
        others=r"(projection_head|prediction_head|\w+_momentum|criterion|memory_bank)\..*",
    ),
    "byol_pytorch": Layout(
        "byol",
        "online_encoder.net.",
        target_backbone="target_encoder.net.",
        names=EITHER,
        others=r"((online|target)_encoder\.(projector|net\.(fc|head))|online_predictor)\..*",
    ),
    "unigrad": Layout(
        "unigrad",
        "encoder.",
        projector="projector.",
        predictor="predictor.",
        target_backbone="momentum_encoder.",
        target_projector="momentum_projector.",
        names=IN_SEQUENTIAL,
        is_numbered=True,
    ),
}


def torch_children(name: str) -> str:
    """Renames a tensor of an nn.Sequential of a ResNet's children by the children's names."""
    head, dot, rest = name.partition(".")
    children = {number: child for child, number in NUMBERED.items()}
    return children.get(head, head) + dot + rest
