"""Imported backbones give torchvision's and timm's features; exported ones are loaded by them."""

import json

import numpy as np
import pytest
import safetensors.numpy

from gsg_jax.evaluation.encoder import read_record
from gsg_jax.models.siamese import build_backbone
from gsg_jax.run.checkpoint import read_variables
from tests.interop.networks import torch, torchvision
from tests.interop.test_import_export import to_file, to_run
from tests.interop.test_layouts import placed, recognised

timm = pytest.importorskip("timm")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.extended


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


def imported(network, folder):
    """Imports a network's state dict into folder/run; returns the job's last line."""
    torch.save(network.state_dict(), folder / "checkpoint.pth")
    return to_run(folder / "checkpoint.pth", folder)


def our_features(folder, images):
    """Embeddings [N, F] of images [N, H, W, C] by the run in folder/run."""
    run = read_record(folder / "run")
    _, variables = read_variables(folder / "run")
    mine = {group: variables[group].get("backbone", {}) for group in ("params", "batch_stats")}
    return np.asarray(build_backbone(run.model).apply(mine, images, train=False))


def their_features(network, images):
    with torch.no_grad():
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def drawn(*size):
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)


def deviation(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """(torchvision's network without its classifier, folder of the run that it became)."""
    network = scrambled(torchvision.models.resnet18())
    folder = tmp_path_factory.mktemp("resnet18")
    assert imported(network, folder)["backbone"] == "resnet18"
    network.fc = torch.nn.Identity()
    return network, folder


@pytest.mark.parametrize("size", [(224, 224), (97, 130)])
def test_pooled_features_of_a_resnet_are_torchvisions(resnet18, size):
    network, folder = resnet18
    images = drawn(*size)
    assert deviation(our_features(folder, images), their_features(network, images)) < 1e-4


def test_pooled_features_of_bottlenecks_are_torchvisions():
    network = scrambled(torchvision.models.resnet50())
    given = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    run, found = recognised(given)
    assert run.model.backbone == "resnet50"
    ours = {group: tree["backbone"] for group, tree in placed(found.tensors, given).items()}
    network.fc = torch.nn.Identity()
    images = drawn(97, 130)
    features = build_backbone(run.model).apply(ours, images, train=False)
    assert deviation(np.asarray(features), their_features(network, images)) < 1e-4


def test_an_exported_resnet_is_loaded_by_both_libraries(resnet18):
    network, folder = resnet18
    path, _ = to_file(folder, "timm.safetensors", "timm")
    card = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert (card["architecture"], card["mean"]) == ("resnet18", [0.485, 0.456, 0.406])
    images = drawn(64, 64)
    loaded = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(path)).eval()
    assert deviation(their_features(loaded, images), their_features(network, images)) < 1e-6
    same = torchvision.models.resnet18()
    same.fc = torch.nn.Identity()
    given = safetensors.numpy.load_file(path)
    same.load_state_dict({name: torch.from_numpy(array) for name, array in given.items()})
    assert torch.equal(same.conv1.weight, network.conv1.weight)


def test_the_job_writes_onnx_too(resnet18):
    network, folder = resnet18
    path, line = to_file(folder, "weights.onnx", "onnx")
    assert line["layout"] == "onnx"
    images = drawn(97, 64)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {"images": images.transpose(0, 3, 1, 2).copy()})
    assert deviation(found, their_features(network, images)) < 1e-4


def test_pooled_features_of_a_vit_are_timms_both_ways(tmp_path):
    network = scrambled(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    imported(network, tmp_path)
    images = drawn(224, 224)
    theirs = their_features(network, images)
    assert deviation(our_features(tmp_path, images), theirs) < 1e-4
    folder, _ = to_file(tmp_path, "folder", "timm")
    files = {"config.json", "model.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == files
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert deviation(their_features(loaded, images), theirs) < 1e-6
    assert loaded.pretrained_cfg["mean"] == [0.485, 0.456, 0.406]  # it has no classifier


@pytest.mark.parametrize("num_heads", [3, 12])
def test_pooled_features_of_a_vit_of_any_number_of_heads_are_timms(num_heads, tmp_path):
    sizes = {"embed_dim": 192, "depth": 12, "patch_size": 8, "img_size": 24}
    network = timm.models.VisionTransformer(num_classes=0, num_heads=num_heads, **sizes)
    scrambled(network)
    torch.save(network.state_dict(), tmp_path / "checkpoint.pth")
    to_run(tmp_path / "checkpoint.pth", tmp_path, f"--config.model.num_heads={num_heads}")
    images = drawn(24, 24)
    assert deviation(our_features(tmp_path, images), their_features(network, images)) < 1e-4
