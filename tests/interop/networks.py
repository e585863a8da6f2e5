"""PyTorch's own modules, as narrow as ours are in tests."""

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
nn = torch.nn
BasicBlock, Bottleneck = torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck

BLOCKS = {"resnet10": (BasicBlock, (1, 1, 1, 1)), "resnet50": (Bottleneck, (3, 4, 6, 3))}


def resnet(fc=None, *, width=4, backbone="resnet10", num_stages=4, small_stem_stride=0):
    """torchvision's ResNet with another width, fc, number of stages or stem."""
    block, sizes = BLOCKS[backbone]
    network = torchvision.models.ResNet(block, sizes)
    network.inplanes = width
    network.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    if small_stem_stride:
        network.conv1 = nn.Conv2d(3, width, 3, small_stem_stride, 1, bias=False)
        network.maxpool = nn.Identity()
    network.bn1 = nn.BatchNorm2d(width)
    for stage, num_blocks in enumerate(sizes):
        layer = nn.Identity()
        if stage < num_stages:
            layer = network._make_layer(block, width * 2**stage, num_blocks, 1 + (stage > 0))
        setattr(network, f"layer{stage + 1}", layer)
    network.fc = nn.Identity() if fc is None else fc
    return network


def projector(inputs, hidden, outputs, *, last_bias=False, last_norm=True):
    """Three linear layers, each but the last with a BatchNorm and a ReLU."""
    last = [nn.BatchNorm1d(outputs, affine=False)] if last_norm else []
    return nn.Sequential(
        *(nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
        *(nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
        *(nn.Linear(hidden, outputs, bias=last_bias), *last),
    )


def predictor(width, hidden):
    """A bottleneck."""
    first = (nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(hidden, width))
