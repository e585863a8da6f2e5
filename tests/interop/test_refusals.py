"""What is no checkpoint of ours is refused in one line that names it, and nothing is written."""

import collections
import shutil

import pytest
import torch

from tests.interop.checkpoints import state_dict
from tests.runs import call, config


@pytest.fixture(scope="module")
def tensors():
    return state_dict("simsiam")


def refused(folder, *flags, name="checkpoint.pth", content=None):
    """The one line that an import ends with; nothing may lie in folder/run then."""
    if content is not None:
        torch.save(content, folder / name)
    file = f"--config.checkpoint={folder / name}"
    status, out, err = call(config("import_torch"), file, f"--workdir={folder / 'run'}", *flags)
    assert status in (1, 2) and out == ""
    assert not (folder / "run").exists()
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_missing_tensors_are_named_with_the_nearest_layout(tensors, tmp_path):
    missing = ("encoder.layer2.0.bn1.weight", "encoder.layer3.0.conv2.weight")
    content = {name: tensor for name, tensor in tensors.items() if name not in missing}
    err = refused(tmp_path, content=content)
    assert "'simsiam'" in err and "lacks" in err
    assert all(name in err for name in missing)


def test_the_first_convolution_may_not_be_missing_either(tensors, tmp_path):
    content = {name: t for name, t in tensors.items() if name != "encoder.conv1.weight"}
    assert "lacks encoder.conv1.weight:" in refused(tmp_path, content=content)


def test_unknown_tensors_are_named_and_counted(tensors, tmp_path):
    extra = {f"encoder.layer1.0.se{n}.weight": torch.zeros(2) for n in range(5)}
    err = refused(tmp_path, content=tensors | extra)
    assert "encoder.layer1.0.se0.weight" in err and "2 more, unknown" in err


def test_another_depth_is_told_by_its_blocks(tensors, tmp_path):
    block = {k: t for k, t in tensors.items() if k.startswith("encoder.layer1.0.")}
    more = {k.replace("layer1.0.", "layer1.1."): t for k, t in block.items()}
    err = refused(tmp_path, content=tensors | more)
    assert "(2, 1, 1, 1) BasicBlocks" in err and "resnet18" in err


def test_a_tensor_of_another_shape_is_named(tensors, tmp_path):
    name = "encoder.layer2.0.conv1.weight"
    content = tensors | {name: torch.zeros(128, 64, 5, 5)}
    err = refused(tmp_path, content=content)
    assert name in err and "(128, 64, 5, 5)" in err


def test_names_of_no_layout_are_shown(tmp_path):
    err = refused(tmp_path, content={"stages.0.weight": torch.zeros(2), "b": torch.zeros(1)})
    assert "(stages.0.weight, b) are of no layout" in err and "torchvision" in err


@pytest.mark.parametrize("kept", [0, 10, 1000, -1000])
def test_files_cut_short_are_called_damaged(tensors, kept, tmp_path):
    torch.save(tensors, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:kept])
    assert "damaged or cut short" in refused(tmp_path, name="cut.pth")


def test_safetensors_cut_short_cannot_be_read(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{}")
    assert "cannot be read" in refused(tmp_path, name="cut.safetensors")


def test_a_pickle_that_holds_more_than_tensors_is_not_loaded(tensors, tmp_path):
    content = {"state_dict": tensors, "args": collections.Counter("abc"), "opener": open}
    err = refused(tmp_path, content=content)
    assert "holds more than tensors" in err and "was not loaded" in err
    assert "collections.Counter" in err or "builtins" in err or "open" in err


def test_what_is_no_state_dict_is_refused(tmp_path):
    assert "holds no state dict" in refused(tmp_path, content=[torch.zeros(2)])
    assert "'epoch' is no tensor with a name" in refused(tmp_path, content={"epoch": 3})
    assert "no such file" in refused(tmp_path, name="absent.pth")
    (tmp_path / "weights.onnx").touch()
    assert "known are .safetensors" in refused(tmp_path, name="weights.onnx")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("encoder.bn1.weight", torch.full((64,), float("nan")), "holds NaN or inf"),
        ("encoder.bn1.bias", torch.full((64,), 1e300, dtype=torch.float64), "beyond float32"),
        ("encoder.bn1.bias", torch.ones(64, dtype=torch.int64), "is int64"),
        ("encoder.bn1.bias", torch.ones(64, dtype=torch.complex64), "is complex64"),
        ("encoder.bn1.bias", torch.ones(64).to_sparse(), "not dense"),
        ("encoder.conv1.weight", torch.ones(64), "[out, channels, height, width]"),
        ("encoder.conv1.weight", torch.ones(64, 4, 7, 7), "1 or 3 channels"),
        (7, torch.ones(64), "no tensor with a name"),
    ],
)
def test_weights_that_are_no_finite_floats_are_named(tensors, name, tensor, said, tmp_path):
    err = refused(tmp_path, content=tensors | {name: tensor})
    assert said in err and (str(name) in err or said == "not dense")


def test_a_full_disk_leaves_nothing_and_the_same_command_goes_on(tensors, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: full)
        torch.save(tensors, tmp_path / "checkpoint.pth")
        file = f"--config.checkpoint={tmp_path / 'checkpoint.pth'}"
        flags = [config("import_torch", "folder"), file, f"--workdir={tmp_path / 'run'}"]
        status, _, err = call(*flags)
        assert status == 1 and "make room" in err
        assert list((tmp_path / "run").iterdir()) == []
    status, _, err = call(*flags)
    assert status == 0, err


def test_a_method_that_there_is_not_is_refused(tensors, tmp_path):
    assert "simsiam_gsg" in refused(tmp_path, "--config.method=simsam", content=tensors)


def test_a_folder_that_holds_a_run_is_left_alone(tensors, tmp_path):
    torch.save(tensors, tmp_path / "checkpoint.pth")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    file = f"--config.checkpoint={tmp_path / 'checkpoint.pth'}"
    status, _, err = call(config("import_torch"), file, f"--workdir={tmp_path / 'run'}")
    assert status == 1 and "holds a run already" in err
    assert (tmp_path / "run" / "config.json").read_text() == "{}"


def test_wrong_exports_are_refused(tmp_path):
    def export(*flags):
        status, _, err = call(config("export"), *flags)
        assert status in (1, 2)
        return err

    run = f"--config.pretrained={tmp_path}"
    assert "--config.output is missing" in export(run)
    assert "take one of torchvision" in export(run, "--config.layout=keras")
    assert ".safetensors or .pth" in export(run, f"--config.output={tmp_path / 'a.bin'}")
    assert "holds no run" in export(run, f"--config.output={tmp_path / 'a.pth'}")
    (tmp_path / "there.pth").touch()
    assert "is there already" in export(run, f"--config.output={tmp_path / 'there.pth'}")
