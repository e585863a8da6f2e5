"""Imported backbones give torchvision's and timm's features; exported ones are loaded by them."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torchvision

from gsg_jax.evaluation.encoder import read_record
from gsg_jax.models.siamese import build_backbone
from gsg_jax.run.checkpoint import read_variables
from tests.interop.test_round_trip import to_file, to_run

RESNETS = {"resnet18": torchvision.models.resnet18, "resnet50": torchvision.models.resnet50}


def scrambled(network):
    """The network with statistics, scales and biases as no initialisation has them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_var", "bn1.weight", "bn2.weight", "downsample.1.weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias", "bn3.weight", "cls_token")):
                tensor.normal_(0.1, 0.2)
    return network.eval()


def our_features(folder, images):
    """Embeddings [N, F] of images [N, H, W, C] by the run in folder/run."""
    run = read_record(folder / "run")
    _, variables = read_variables(folder / "run")
    mine = {group: variables[group].get("backbone", {}) for group in ("params", "batch_stats")}
    return np.asarray(build_backbone(run.model).apply(mine, jnp.asarray(images), train=False))


def their_features(network, images):
    with torch.no_grad():
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def deviation(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module", params=RESNETS)
def resnet(request, tmp_path_factory):
    """(name, torchvision's network with its classifier, folder of the run it was imported to)."""
    network = scrambled(RESNETS[request.param]())
    folder = tmp_path_factory.mktemp(request.param)
    line = to_run(network.state_dict(), folder, wrapper="", prefix="")
    assert line["backbone"] == request.param
    return request.param, network, folder


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (225, 225), (97, 97), (97, 130)])
def test_pooled_features_of_resnets_are_torchvisions(resnet, size):
    _, network, folder = resnet
    network.fc = torch.nn.Identity()
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    assert deviation(our_features(folder, images), their_features(network, images)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_exported_resnets_are_loaded_by_both_libraries(resnet, layout, tmp_path):
    name, network, folder = resnet
    path, line = to_file(folder, f"{layout}.safetensors", layout)
    card = json.loads((folder / f"{layout}.safetensors.json").read_text())
    assert line["files"] == [str(path), f"{path}.json"]
    assert (card["architecture"], card["mean"]) == (name, [0.485, 0.456, 0.406])
    images = np.random.default_rng(2).normal(size=(2, 64, 64, 3)).astype(np.float32)
    loaded = timm.create_model(name, num_classes=0, checkpoint_path=str(path)).eval()
    network.fc = torch.nn.Identity()
    same = RESNETS[name]()
    same.fc = torch.nn.Identity()
    same.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert torch.equal(same.conv1.weight, network.conv1.weight)
    assert deviation(their_features(loaded, images), their_features(network, images)) < 1e-6


@pytest.mark.slow
def test_the_job_writes_onnx_too(resnet):
    _, network, folder = resnet
    path, line = to_file(folder, "weights.onnx", "onnx")
    assert line["layout"] == "onnx"
    images = np.random.default_rng(4).normal(size=(2, 97, 64, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {"images": images.transpose(0, 3, 1, 2).copy()})
    network.fc = torch.nn.Identity()
    assert deviation(found, their_features(network, images)) < 1e-4


@pytest.mark.slow
def test_detectron2_finds_its_own_names(resnet):
    name, network, folder = resnet
    path, _ = to_file(folder, "weights.pkl", "detectron2")
    content = pickle.loads(path.read_bytes())
    assert content["matching_heuristics"] is True
    model, theirs = content["model"], network.state_dict()
    pairs = {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.1.conv2.norm.weight": "layer1.1.bn2.weight",
        "res5.0.shortcut.weight": "layer4.0.downsample.0.weight",
        "res5.0.shortcut.norm.bias": "layer4.0.downsample.1.bias",
    }
    for there, here in pairs.items():
        np.testing.assert_array_equal(model[there], theirs[here].numpy())
    assert all(key.startswith(("stem.conv1.", "res")) for key in model)
    counted = [key for key in theirs if "num_batches" not in key and not key.startswith("fc.")]
    assert len(model) == len(counted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_tiny_patch16_224"])
def test_pooled_features_of_vits_are_timms_both_ways(name, tmp_path):
    network = scrambled(timm.create_model(name, num_classes=0))
    to_run(network.state_dict(), tmp_path, wrapper="", prefix="")
    images = np.random.default_rng(3).normal(size=(2, 224, 224, 3)).astype(np.float32)
    theirs = their_features(network, images)
    assert deviation(our_features(tmp_path, images), theirs) < 1e-4
    folder, line = to_file(tmp_path, "folder", "timm")
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert deviation(their_features(loaded, images), theirs) < 1e-6
    assert loaded.pretrained_cfg["mean"] == [0.485, 0.456, 0.406]
