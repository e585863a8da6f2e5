"""Import, then export, gives back every tensor of every layout, bit for bit."""

import json
import warnings

import numpy as np
import pytest
import safetensors.numpy
import timm
import torch

from tests.interop.checkpoints import resnet, state_dict
from tests.runs import call, config, figures, on_images, write_images

LAYOUTS = {
    "torchvision": "torchvision",
    "backbone": "torchvision",
    "simsiam": "simsiam",
    "byol": "simsiam",
    "moco v1": "moco",
    "moco v2": "moco",
    "barlow_twins": "barlow_twins",
    "vicreg": "vicreg",
    "unigrad": "unigrad",
}


def to_run(tensors, folder, *flags, wrapper="state_dict", prefix="module."):
    """Imports tensors into folder/run; returns the job's last line."""
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    content = {"epoch": 3, "arch": "resnet10", wrapper: named} if wrapper else named
    torch.save(content, folder / "checkpoint.pth.tar")
    file = f"--config.checkpoint={folder / 'checkpoint.pth.tar'}"
    status, out, err = call(
        config("import_torch", "folder"), file, f"--workdir={folder / 'run'}", *flags
    )
    assert status == 0, err
    return figures(out)


def to_file(folder, name, layout, status=0):
    """Exports folder/run; returns the path and the last line."""
    path = folder / name
    flags = [f"--config.output={path}", f"--config.layout={layout}"]
    found, out, err = call(config("export"), f"--config.pretrained={folder / 'run'}", *flags)
    assert found == status, err
    return path, figures(out) if out else err


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_comes_back_bit_equal(layout, tmp_path):
    tensors = state_dict(layout)
    flags = ["--config.method=byol_gsg"] if layout == "byol" else []
    line = to_run(tensors, tmp_path, *flags)
    assert (line["layout"], line["backbone"]) == (LAYOUTS[layout], "resnet10")
    assert line["num_tensors"] + line["num_kept"] == len(tensors)
    path, _ = to_file(tmp_path, "back.pth", "reference")
    back = torch.load(path, weights_only=True)
    assert back.keys() == {"state_dict"}
    assert_same(back["state_dict"], {f"module.{name}": t for name, t in tensors.items()})
    path, _ = to_file(tmp_path, "back.safetensors", "reference")
    flat = safetensors.numpy.load_file(path)
    expected = {f"module.{name}": tensor for name, tensor in tensors.items()}
    assert_same({name: torch.from_numpy(np.array(a)) for name, a in flat.items()}, expected)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [0, 10])
def test_timms_vit_comes_back_bit_equal(num_classes, tmp_path):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, img_size=64)
    tensors = {name: torch.randn(tensor.shape) for name, tensor in vit.state_dict().items()}
    line = to_run(tensors, tmp_path, wrapper="", prefix="")
    assert (line["layout"], line["backbone"]) == ("timm", "vit_tiny")
    assert line["num_kept"] == (2 if num_classes else 0)
    path, _ = to_file(tmp_path, "back.pth", "reference")
    assert_same(torch.load(path, weights_only=True), tensors)
    path, _ = to_file(tmp_path, "timm.pth", "timm")
    loaded = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=64, checkpoint_path=str(path)
    )
    assert torch.equal(loaded.pos_embed, tensors["pos_embed"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ResNet of torchvision's, trained on for two steps; and what an evaluation said before."""
    folder = tmp_path_factory.mktemp("trained")
    images = on_images(write_images(folder / "images"))
    to_run(state_dict("torchvision"), folder)
    run = folder / "run"
    flags = [f"--config.pretrained={run}", "--config.eval.knn_k=(5,)", "--config.data.crop=device"]
    status, out, err = call(config("knn"), *flags, *images, f"--workdir={folder / 'knn'}")
    assert status == 0, err
    judged = figures(out)
    model = json.loads((run / "config.json").read_text())["model"]
    same = [f"--config.model.{key}={model[key]}" for key in ("backbone", "width")]
    schedule = ["--config.run.num_steps=2", "--config.optim.learning_rate=0.01"]
    small = ["--config.views.size=12", "--config.data.batch_size=8", "--config.eval.knn_k=5"]
    flags = [f"--workdir={run}", *same, *images, *schedule, *small]
    status, out, err = call(config("simsiam_gsg", "folder"), *flags)
    assert status == 0, err
    return folder, judged, figures(out)


@pytest.mark.slow
def test_an_imported_run_is_judged_and_trained_on_like_any_other(trained):
    _, judged, line = trained
    assert (judged["step"], judged["method"]) == (0, "simsiam_gsg")
    assert line["step"] == 2


@pytest.mark.slow
def test_once_a_step_has_moved_the_backbone_the_classifier_that_came_with_it_is_left_out(trained):
    folder, _, _ = trained
    path, line = to_file(folder, "moved.pth", "torchvision")
    assert line["step"] == 2
    network, before = resnet(), state_dict("torchvision")
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    moved = (network.conv1.weight - before["conv1.weight"]).abs().max()
    assert 0 < moved < 0.1


@pytest.mark.slow
def test_safetensors_hold_what_a_pickle_holds(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = {name: t.numpy() for name, t in state_dict("backbone").items()}
        safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
        flags = [f"--config.checkpoint={tmp_path / 'weights.safetensors'}"]
        status, out, err = call(config("import_torch"), *flags, f"--workdir={tmp_path / 'run'}")
    assert status == 0, err
    path, _ = to_file(tmp_path, "back.safetensors", "reference")
    back = safetensors.numpy.load_file(path)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], array) for name, array in tensors.items())
