"""Checkpoints of every layout, as PyTorch's own modules write them, with random statistics."""

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock


def resnet(fc: nn.Module | None = None) -> nn.Module:
    """A ResNet-10 of torchvision's, its fc exchanged."""
    network = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    network.fc = nn.Identity() if fc is None else fc
    return network


def projector(*, last_bias: bool = False, last_norm: bool = True) -> nn.Sequential:
    """Three linear layers of 48 and 40 channels, each but the last with a BatchNorm and a ReLU."""
    last = [nn.BatchNorm1d(40, affine=False)] if last_norm else []
    return nn.Sequential(
        *(nn.Linear(512, 48, bias=False), nn.BatchNorm1d(48), nn.ReLU()),
        *(nn.Linear(48, 48, bias=False), nn.BatchNorm1d(48), nn.ReLU()),
        *(nn.Linear(48, 40, bias=last_bias), *last),
    )


def predictor() -> nn.Sequential:
    """A bottleneck of 12 channels."""
    return nn.Sequential(
        nn.Linear(40, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 40)
    )


def numbered_resnet() -> nn.Sequential:
    """The children of a ResNet without its fc."""
    return nn.Sequential(*list(resnet().children())[:-1])


def moco_head() -> nn.Sequential:
    """Two linear layers with biases, without a norm."""
    return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))


def vicreg_projector() -> nn.Sequential:
    """Linear layers with biases, the last without one and without a norm."""
    return nn.Sequential(
        *(nn.Linear(512, 48), nn.BatchNorm1d(48), nn.ReLU()), nn.Linear(48, 48, bias=False)
    )


def modules(layout: str) -> dict[str, nn.Module]:
    """What a checkpoint of a layout is made of, by attribute."""
    return {
        "simsiam": lambda: {
            "encoder": resnet(projector(last_bias=True)),
            "predictor": predictor(),
        },
        "byol": lambda: {
            "encoder": resnet(projector()),
            "predictor": predictor(),
            "encoder_momentum": resnet(projector()),
        },
        "moco v1": lambda: {
            "encoder_q": resnet(nn.Linear(512, 128)),
            "encoder_k": resnet(nn.Linear(512, 128)),
        },
        "moco v2": lambda: {"encoder_q": resnet(moco_head()), "encoder_k": resnet(moco_head())},
        "barlow_twins": lambda: {
            "backbone": resnet(),
            "projector": projector(last_norm=False),
            "bn": nn.BatchNorm1d(40, affine=False),
        },
        "vicreg": lambda: {"backbone": resnet(), "projector": vicreg_projector()},
        "unigrad": lambda: {
            "encoder": numbered_resnet(),
            "projector": projector(),
            "predictor": predictor(),
            "momentum_encoder": numbered_resnet(),
            "momentum_projector": projector(),
        },
    }[layout]()


def state_dict(layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, every one of them random."""
    torch.manual_seed(seed)
    if layout == "torchvision":
        whole = resnet(nn.Linear(512, 1000))
    elif layout == "backbone":
        whole = resnet()
    else:
        whole = nn.ModuleDict(modules(layout))
    found = whole.state_dict()
    if layout.startswith("moco"):
        found |= {"queue": torch.randn(128, 64), "queue_ptr": torch.tensor([32])}
    return {name: _random(name, tensor) for name, tensor in found.items()}


def _random(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor + 7
    drawn = torch.randn(tensor.shape) / max(tensor[0].numel(), 4) ** 0.5
    return drawn.abs() + 0.5 if name.endswith(("running_var", "bn.weight")) else drawn
