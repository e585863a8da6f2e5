"""Backbones as ONNX graphs: normalised images [N, C, H, W] in, embeddings [N, F] out."""

import pathlib
from collections.abc import Mapping

import ml_collections
import numpy as np

from gsg_jax.console import UserError
from gsg_jax.interop.files import write_bytes
from gsg_jax.models.resnet import RESNETS, Bottleneck
from gsg_jax.models.vit import NORM_EPSILON, VITS, num_heads

OPSET, IR_VERSION = 20, 10  # Gelu came with 20; onnxruntime 1.18 reads both


def write_onnx(
    tensors: Mapping[str, np.ndarray], run: ml_collections.ConfigDict, path: pathlib.Path
) -> None:
    """Writes a backbone in evaluation mode, for batches of any size.

    A ResNet's graph takes images of any size, a ViT's only those of views.size.

    Args:
      tensors: by torchvision's or timm's names.
      run: the run's config.
      path: the .onnx file.

    Raises:
      UserError: if the onnx package is not installed, or the file cannot be written.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "--config.layout=onnx: needs the onnx package: pip install 'gsg_jax[onnx]'"
        ) from error
    is_vit = run.model.backbone in VITS
    graph = _Graph(onnx, tensors)
    embeddings = _vit(graph, run.model) if is_vit else _resnet(graph, run.model)
    graph.add("Identity", embeddings, output="embeddings")
    channels = tensors["patch_embed.proj.weight" if is_vit else "conv1.weight"].shape[1]
    size = (run.views.size, run.views.size) if is_vit else ("height", "width")
    real = onnx.TensorProto.FLOAT
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "backbone",
            [onnx.helper.make_tensor_value_info("images", real, ["N", channels, *size])],
            [onnx.helper.make_tensor_value_info("embeddings", real, ["N", "F"])],
            graph.initializers(),
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="gsg_jax",
    )
    onnx.checker.check_model(model)
    write_bytes(model.SerializeToString(), path)


class _Graph:
    """The nodes in order, and their constants."""

    def __init__(self, onnx, tensors: Mapping[str, np.ndarray]):
        self.nodes = []
        self.tensors = tensors
        self._onnx = onnx
        self._constants = {}

    def add(self, kind: str, *inputs: str, output: str = "", **attributes) -> str:
        """Adds a node; returns the name of its output."""
        output = output or f"{kind}_{len(self.nodes)}"
        node = self._onnx.helper.make_node(kind, [*inputs], [output], **attributes)
        self.nodes.append(node)
        return output

    def weight(self, name: str) -> str:
        """A tensor as a constant."""
        return self.constant(name, self.tensors[name])

    def constant(self, name: str, array: np.ndarray) -> str:
        """An array as a constant."""
        self._constants[name] = np.array(array, order="C")  # arrays without dimensions too
        return name

    def whole(self, *numbers: int) -> str:
        """Integers as a constant: a shape, axes."""
        return self.constant(f"whole_{numbers}", np.array(numbers, np.int64))

    def initializers(self) -> list:
        """All constants."""
        from_array = self._onnx.numpy_helper.from_array
        return [from_array(array, name) for name, array in self._constants.items()]


def _resnet(graph: _Graph, model: ml_collections.ConfigDict) -> str:
    is_small = model.stem == "small"
    x = _conv(graph, "conv1", "images", model.stem_stride if is_small else 2)
    x = graph.add("Relu", _batch_norm(graph, "bn1", x, model))
    if not is_small:
        x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    block, stage_sizes = RESNETS[model.backbone]
    for stage, num_blocks in enumerate(stage_sizes[: model.num_stages], 1):
        for index in range(num_blocks):
            stride = 2 if stage > 1 and index == 0 else 1
            strides = (1, stride, 1) if block is Bottleneck else (stride, 1)
            x = _residual_block(graph, f"layer{stage}.{index}", x, strides, model)
    return graph.add("Flatten", graph.add("GlobalAveragePool", x), axis=1)


def _residual_block(graph, name: str, x: str, strides: tuple[int, ...], model) -> str:
    y = x
    for number, stride in enumerate(strides, 1):
        y = _conv(graph, f"{name}.conv{number}", y, stride)
        y = _batch_norm(graph, f"{name}.bn{number}", y, model)
        y = y if number == len(strides) else graph.add("Relu", y)
    if f"{name}.downsample.0.weight" in graph.tensors:
        x = _conv(graph, f"{name}.downsample.0", x, max(strides))
        x = _batch_norm(graph, f"{name}.downsample.1", x, model)
    return graph.add("Relu", graph.add("Add", x, y))


def _conv(graph: _Graph, name: str, x: str, stride: int) -> str:
    padding = graph.tensors[f"{name}.weight"].shape[2] // 2
    weight = graph.weight(f"{name}.weight")
    return graph.add("Conv", x, weight, strides=[stride] * 2, pads=[padding] * 4)


def _batch_norm(graph: _Graph, name: str, x: str, model: ml_collections.ConfigDict) -> str:
    parts = ("weight", "bias", "running_mean", "running_var")
    weights = [graph.weight(f"{name}.{part}") for part in parts]
    return graph.add("BatchNormalization", x, *weights, epsilon=model.bn_epsilon)


def _vit(graph: _Graph, model: ml_collections.ConfigDict) -> str:
    width, _, depth = VITS[model.backbone]
    patch = [graph.weight(f"patch_embed.proj.{part}") for part in ("weight", "bias")]
    x = graph.add("Conv", "images", *patch, strides=[model.patch_size] * 2)  # [N, D, rows, columns]
    x = graph.add("Reshape", x, graph.whole(0, width, -1))
    x = graph.add("Transpose", x, perm=[0, 2, 1])  # [N, T, D]
    if model.pooling == "class_token":
        num_images = graph.add("Shape", x, start=0, end=1)
        shape = graph.add("Concat", num_images, graph.whole(1, width), axis=0)
        token = graph.add("Expand", graph.weight("cls_token"), shape)
        x = graph.add("Concat", token, x, axis=1)
    x = graph.add("Add", x, graph.weight("pos_embed"))
    for index in range(depth):
        x = _transformer_block(graph, f"blocks.{index}", x, width, num_heads(model))
    x = _layer_norm(graph, "norm", x)
    if model.pooling == "class_token":
        return graph.add("Gather", x, graph.constant("first", np.array(0)), axis=1)
    return graph.add("ReduceMean", x, graph.whole(1), keepdims=0)


def _transformer_block(graph: _Graph, name: str, x: str, width: int, num_heads: int) -> str:
    head_width = width // num_heads
    y = _linear(graph, f"{name}.attn.qkv", _layer_norm(graph, f"{name}.norm1", x))
    y = graph.add("Reshape", y, graph.whole(0, 0, 3, num_heads, head_width))
    y = graph.add("Transpose", y, perm=[2, 0, 3, 1, 4])  # [3, N, heads, T, D / heads]
    q, k, v = (
        graph.add("Gather", y, graph.constant(f"place_{place}", np.array(place)), axis=0)
        for place in range(3)
    )
    scale = graph.constant("scale", np.array(head_width**-0.5, np.float32))
    k = graph.add("Transpose", k, perm=[0, 1, 3, 2])
    scores = graph.add("MatMul", graph.add("Mul", q, scale), k)
    y = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
    y = graph.add("Transpose", y, perm=[0, 2, 1, 3])
    y = graph.add("Reshape", y, graph.whole(0, 0, width))
    x = graph.add("Add", x, _linear(graph, f"{name}.attn.proj", y))

    y = _linear(graph, f"{name}.mlp.fc1", _layer_norm(graph, f"{name}.norm2", x))
    y = _linear(graph, f"{name}.mlp.fc2", graph.add("Gelu", y))
    return graph.add("Add", x, y)


def _linear(graph: _Graph, name: str, x: str) -> str:
    kernel = graph.constant(f"{name}.kernel", graph.tensors[f"{name}.weight"].T)
    return graph.add("Add", graph.add("MatMul", x, kernel), graph.weight(f"{name}.bias"))


def _layer_norm(graph: _Graph, name: str, x: str) -> str:
    weights = [graph.weight(f"{name}.{part}") for part in ("weight", "bias")]
    return graph.add("LayerNormalization", x, *weights, axis=-1, epsilon=NORM_EPSILON)
