"""ONNX graphs give the embeddings of the networks they were written from."""

import jax
import numpy as np
import pytest

from gsg_jax.config.load import load_config
from gsg_jax.interop.backbones import fixed_positions
from gsg_jax.interop.layouts import to_tensors
from gsg_jax.interop.onnx_graph import write_onnx
from gsg_jax.models.siamese import build_backbone

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.extended

SMALL = {"width": 8, "stem": "small", "stem_stride": 2}
NETWORKS = {
    "resnet10 small": ({"backbone": "resnet10", **SMALL, "num_stages": 3}, 1, (29, 35)),
    "resnet18": ({"backbone": "resnet18", "width": 8}, 3, (65, 97)),
    "resnet50": ({"backbone": "resnet50", "width": 8, "num_stages": 2}, 3, (64, 47)),
    "vit mean": (
        {"backbone": "vit_micro", "patch_size": 8, "pooling": "mean", "positions": "learned"},
        3,
        (32, 32),
    ),
    "vit token": ({"backbone": "vit_micro", "patch_size": 4, "positions": "fixed"}, 1, (24, 24)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_onnxruntime_gives_the_same_embeddings(network, tmp_path):
    sizes, channels, size = NETWORKS[network]
    run = load_config("configs/simsiam.py:imagenet")
    run.model.update(sizes)
    run.views.size = size[0]
    backbone = build_backbone(run.model)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, *size, channels)).astype(np.float32)
    drawn = jax.eval_shape(lambda: backbone.init(jax.random.key(0), images, train=False))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: random_leaf(rng, path[-1].key, leaf.shape), drawn
    )
    groups = {g: {"backbone": variables.get(g, {})} for g in ("params", "batch_stats")}
    tensors = to_tensors("timm" if "vit" in network else "torchvision", groups, run)
    if run.model.positions == "fixed" and "vit" in network:
        tensors["pos_embed"] = fixed_positions(run)
    write_onnx(tensors, run, tmp_path / "backbone.onnx")

    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx")
    (found,) = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
    expected = np.asarray(backbone.apply(variables, images, train=False))
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def random_leaf(rng, name, shape):
    """Weights, statistics and scales as no initialisation has them."""
    if name in ("var", "scale"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    fan_in = np.prod(shape[:-1]) if name == "kernel" else 4
    return (rng.normal(size=shape) / fan_in**0.5).astype(np.float32)
