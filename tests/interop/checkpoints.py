"""Checkpoints of every layout in NumPy: the names and shapes that PyTorch's modules write.

The networks are narrow; test_pickles.py holds the names to those of PyTorch's own modules.
"""

import numpy as np

WIDTH = 4  # of the first of two stages; torchvision's have four
EMBEDDING = 2 * WIDTH
HIDDEN, PROJECTION, BOTTLENECK = 6, 5, 3
Shapes = dict[str, tuple[int, ...]]


def resnet(blocks: tuple[int, ...] = (1, 1), width: int = WIDTH) -> Shapes:
    """A ResNet of basic blocks by torchvision's names, without its fc."""
    shapes, inputs = {"conv1.weight": (width, 3, 7, 7)} | norm("bn1", width), width
    for stage, num_blocks in enumerate(blocks):
        outputs = width * 2**stage
        for index in range(num_blocks):
            block = {"conv1.weight": (outputs, inputs, 3, 3)} | norm("bn1", outputs)
            block |= {"conv2.weight": (outputs, outputs, 3, 3)} | norm("bn2", outputs)
            if inputs != outputs:
                block |= {"downsample.0.weight": (outputs, inputs, 1, 1)}
                block |= norm("downsample.1", outputs)
            shapes |= below(f"layer{stage + 1}.{index}", block)
            inputs = outputs
    return shapes


def norm(name: str, width: int, *, is_affine: bool = True) -> Shapes:
    """A BatchNorm, its counter last."""
    parts = (*(("weight", "bias") if is_affine else ()), "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    """A linear layer."""
    shapes = {f"{name}.weight": (outputs, inputs)}
    return shapes | {f"{name}.bias": (outputs,)} if bias else shapes


def projector(*, last_bias: bool = False, last_norm: bool = True) -> Shapes:
    """Three linear layers, each but the last with a BatchNorm and a ReLU."""
    shapes = linear("0", EMBEDDING, HIDDEN, bias=False) | norm("1", HIDDEN)
    shapes |= linear("3", HIDDEN, HIDDEN, bias=False) | norm("4", HIDDEN)
    shapes |= linear("6", HIDDEN, PROJECTION, bias=last_bias)
    return shapes | norm("7", PROJECTION, is_affine=False) if last_norm else shapes


def predictor() -> Shapes:
    """A bottleneck."""
    shapes = linear("0", PROJECTION, BOTTLENECK, bias=False) | norm("1", BOTTLENECK)
    return shapes | linear("3", BOTTLENECK, PROJECTION)


def vit(num_classes: int = 0) -> Shapes:
    """A vit_micro with a class token and 2 x 2 learned positions, by timm's names."""
    width, depth, side = 96, 4, 4

    def layer_norm(name):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 5, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, side, side), "patch_embed.proj.bias": (width,)}
    block = layer_norm("norm1") | linear("attn.qkv", width, 3 * width)
    block |= linear("attn.proj", width, width) | layer_norm("norm2")
    block |= linear("mlp.fc1", width, 4 * width) | linear("mlp.fc2", 4 * width, width)
    for index in range(depth):
        shapes |= below(f"blocks.{index}", block)
    shapes |= layer_norm("norm")
    return shapes | linear("head", width, num_classes) if num_classes else shapes


def below(prefix: str, shapes: Shapes) -> Shapes:
    """The same tensors in a larger module."""
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def numbered(shapes: Shapes) -> Shapes:
    """A ResNet as the nn.Sequential of its children: conv1 is 0, bn1 is 1, layer1 is 4."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = {name: name.partition(".") for name in shapes}
    return {f"{numbers[parts[name][0]]}.{parts[name][2]}": shapes[name] for name in shapes}


def encoder(fc: Shapes) -> Shapes:
    """A ResNet that ends in `fc`."""
    return resnet() | below("fc", fc)


MOCO = linear("0", EMBEDDING, EMBEDDING) | linear("2", EMBEDDING, 16)
QUEUE = {"queue": (16, 8), "queue_ptr": (1,)}
VICREG = linear("0", EMBEDDING, HIDDEN) | norm("1", HIDDEN) | linear("3", HIDDEN, 7, bias=False)
# What a checkpoint holds, by a name of its own; the part before the space is its layout.
SHAPES = {
    "torchvision": resnet((1, 1, 1, 1)) | linear("fc", 8 * WIDTH, 10),
    "timm": vit(),
    "timm classifier": vit(num_classes=10),
    "simsiam": below("encoder", encoder(projector(last_bias=True)))
    | below("predictor", predictor()),
    "simsiam target": below("encoder", encoder(projector()))
    | below("predictor", predictor())
    | below("encoder_momentum", encoder(projector())),
    "moco": QUEUE | below("encoder_q", encoder(MOCO)) | below("encoder_k", encoder(MOCO)),
    "moco_v3": below("base_encoder", encoder(VICREG))
    | below("momentum_encoder", encoder(VICREG))
    | below("predictor", VICREG),
    "solo_learn": below("backbone", resnet())
    | linear("classifier", EMBEDDING, 10)
    | below("projector", VICREG)
    | below("momentum_backbone", resnet()),
    "dino": below("backbone", resnet())
    | below("head.mlp", MOCO)
    | {"head.last_layer.weight_g": (7, 1), "head.last_layer.weight_v": (7, 16)},
    "lightly": below("backbone", numbered(resnet()))
    | below("projection_head.layers", VICREG)
    | below("backbone_momentum", numbered(resnet())),
    "byol_pytorch": below("online_encoder.net", resnet() | linear("fc", EMBEDDING, 10))
    | below("online_encoder.projector", VICREG)
    | below("online_predictor", VICREG)
    | below("target_encoder.net", resnet() | linear("fc", EMBEDDING, 10))
    | below("target_encoder.projector", VICREG),
    "barlow_twins": below("backbone", resnet())
    | below("projector", projector(last_norm=False))
    | norm("bn", PROJECTION, is_affine=False),
    "vicreg": below("backbone", resnet()) | below("projector", VICREG),
    "unigrad": below("encoder", numbered(resnet()))
    | below("projector", projector())
    | below("predictor", predictor())
    | below("momentum_encoder", numbered(resnet()))
    | below("momentum_projector", projector()),
}


def tensors(name: str) -> dict[str, np.ndarray]:
    """A checkpoint of SHAPES, every number random."""
    return drawn(SHAPES[name])


def drawn(shapes: Shapes) -> dict[str, np.ndarray]:
    """Random tensors: variances are positive, counters are not zero."""
    rng = np.random.default_rng(0)
    return {name: _random(rng, name, shape) for name, shape in shapes.items()}


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith(("num_batches_tracked", "queue_ptr")):
        return rng.integers(1, 9, shape)
    drawn = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return (np.abs(drawn) + 0.5 if name.endswith("running_var") else drawn).astype(np.float32)
