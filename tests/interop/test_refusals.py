"""A file that is no checkpoint of ours is refused in one line, and nothing is written."""

import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.interop.checkpoints import tensors
from tests.runs import call, config


@pytest.fixture(scope="module")
def given():
    return tensors("simsiam")


def flags(folder, name="checkpoint.safetensors"):
    file = f"--config.checkpoint={folder / name}"
    return [config("import_torch", "folder"), file, f"--workdir={folder / 'run'}"]


def refused(folder, *more, name="checkpoint.safetensors", content=None):
    """The one line that an import ends with; folder/run may not exist then."""
    if content is not None:
        safetensors.numpy.save_file(content, folder / name)
    status, out, err = call(*flags(folder, name), *more)
    assert status in (1, 2) and out == ""
    assert not (folder / "run").exists()
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_missing_tensors_are_named_with_the_nearest_layout(given, tmp_path):
    missing = ("encoder.layer2.0.bn1.weight", "encoder.layer3.0.conv2.weight")
    content = {name: array for name, array in given.items() if name not in missing}
    err = refused(tmp_path, content=content)
    assert "'simsiam'" in err and "lacks" in err
    assert all(name in err for name in missing)


def test_the_first_convolution_may_not_be_missing_either(given, tmp_path):
    content = {name: array for name, array in given.items() if name != "encoder.conv1.weight"}
    assert "lacks encoder.conv1.weight:" in refused(tmp_path, content=content)


def test_unknown_tensors_are_named_and_counted(given, tmp_path):
    extra = {f"encoder.layer1.0.se{n}.weight": np.zeros(2, np.float32) for n in range(5)}
    err = refused(tmp_path, content=given | extra)
    assert "encoder.layer1.0.se0.weight" in err and "2 more, unknown" in err


def test_another_depth_is_known_by_its_blocks(given, tmp_path):
    block = {k: t for k, t in given.items() if k.startswith("encoder.layer1.0.")}
    more = {k.replace("layer1.0.", "layer1.1."): t for k, t in block.items()}
    err = refused(tmp_path, content=given | more)
    assert "(2, 1, 1, 1) BasicBlocks" in err and "resnet18" in err


def test_names_of_no_layout_are_shown(tmp_path):
    content = {"stages.0.weight": np.zeros(2), "b": np.zeros(1)}
    err = refused(tmp_path, content=content)
    assert "of no known layout" in err and "stages.0.weight" in err and "torchvision" in err


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("encoder.layer2.0.conv1.weight", np.zeros((8, 4, 5, 5), np.float32), "(8, 4, 5, 5)"),
        ("encoder.bn1.weight", np.full(4, np.nan, np.float32), "holds NaN or inf"),
        ("encoder.bn1.bias", np.full(4, 1e300), "beyond float32"),
        ("encoder.bn1.bias", np.ones(4, np.int64), "is int64"),
        ("encoder.conv1.weight", np.ones(4, np.float32), "[out, channels, height, width]"),
        ("encoder.conv1.weight", np.ones((4, 4, 7, 7), np.float32), "1 or 3 channels"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_a_tensor_that_is_no_weight_of_the_network_is_named(given, name, array, said, tmp_path):
    err = refused(tmp_path, content=given | {name: array})
    assert said in err and name in err


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{}")
    assert "cannot be read" in refused(tmp_path, name="cut.safetensors")
    assert "no such file" in refused(tmp_path, name="absent.pth")
    (tmp_path / "weights.onnx").touch()
    assert "known are .safetensors" in refused(tmp_path, name="weights.onnx")


def test_a_full_disk_leaves_nothing_and_the_same_command_works_later(tmp_path, monkeypatch):
    safetensors.numpy.save_file(tensors("torchvision"), tmp_path / "checkpoint.safetensors")
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: full)
        status, _, err = call(*flags(tmp_path))
        assert status == 1 and "make room" in err
        assert list((tmp_path / "run").iterdir()) == []
    status, _, err = call(*flags(tmp_path))
    assert status == 0, err


def test_an_unknown_method_is_refused(given, tmp_path):
    assert "simsiam_gsg" in refused(tmp_path, "--config.method=simsam", content=given)


def test_a_folder_that_holds_a_run_is_left_alone(given, tmp_path):
    safetensors.numpy.save_file(given, tmp_path / "checkpoint.safetensors")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    status, _, err = call(*flags(tmp_path))
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
