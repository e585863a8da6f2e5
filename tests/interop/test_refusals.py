"""A file that is no checkpoint of ours is refused in one line, and nothing is written."""

import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.interop.checkpoints import tensors
from tests.runs import call, config


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


GIVEN = tensors("simsiam")
MISSING = ("encoder.layer2.0.bn1.weight", "encoder.layer2.0.conv2.weight")
BLOCK = {name: array for name, array in GIVEN.items() if name.startswith("encoder.layer1.0.")}


def without(*missing):
    return {name: array for name, array in GIVEN.items() if name not in missing}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (without(*MISSING), ("'simsiam'", "lacks", *MISSING)),
        (without("encoder.conv1.weight"), ("lacks encoder.conv1.weight:",)),
        (
            GIVEN | {f"encoder.layer1.0.se{n}.weight": np.zeros(2, np.float32) for n in range(5)},
            ("encoder.layer1.0.se0.weight", "2 more, unknown"),
        ),
        (
            GIVEN | {name.replace("layer1.0.", "layer1.1."): t for name, t in BLOCK.items()},
            ("(2, 1, 0, 0) BasicBlocks", "resnet18"),
        ),
        (
            {"stages.0.weight": np.zeros(2), "b": np.zeros(1)},
            ("of no known layout", "stages.0.weight", "torchvision"),
        ),
    ],
    ids=["missing", "no first convolution", "unknown", "another depth", "no layout"],
)
def test_tensors_of_another_network_are_named(content, said, tmp_path):
    err = refused(tmp_path, content=content)
    assert all(text in err for text in said)


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
def test_a_tensor_that_is_no_weight_of_the_network_is_named(name, array, said, tmp_path):
    err = refused(tmp_path, content=GIVEN | {name: array})
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
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]
    status, _, err = call(*flags(tmp_path))
    assert status == 0, err


def test_an_unknown_method_is_refused_and_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    assert "simsiam_gsg" in refused(tmp_path, "--config.method=simsam", content=GIVEN)
    safetensors.numpy.save_file(GIVEN, tmp_path / "checkpoint.safetensors")
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
