"""Data sets prepared once, and read back without TensorFlow."""

import gzip
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gsg_jax.console import UserError
from gsg_jax.data import open as sources
from gsg_jax.data import prepare
from tests.small import data_config


def write_idx(folder, prefix, num_images, *, seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_images, *shape), dtype=np.uint8)
    labels = (np.arange(num_images) % 10).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb") as file:
            file.write(header + array.tobytes())
    return images, labels


@pytest.fixture
def idx_dir(tmp_path):
    folder = tmp_path / "idx"
    folder.mkdir()
    write_idx(folder, "train", 43)
    write_idx(folder, "t10k", 21, seed=1)
    return folder


def test_idx_files_come_back_from_the_prepared_set(tmp_path, idx_dir):
    assert prepare.main(["tiny", f"--data_dir={tmp_path}", f"--idx_dir={idx_dir}"]) == 0
    for split in ("train", "test"):
        images, labels = prepare.read_idx_split(idx_dir, split)
        source = sources.open_source(data_config("tiny", tmp_path), split)
        # TFDS shuffles while preparing, so pair by content.
        expected = sorted(
            (i.tobytes(), int(label)) for i, label in zip(images, labels, strict=True)
        )
        found = zip(source.images, source.labels, strict=True)
        assert sorted((i.tobytes(), int(label)) for i, label in found) == expected
        assert source.class_names == tuple("0123456789")


def test_fashion_mnist_gets_its_class_names_and_a_name_that_tfds_cannot_have_is_refused(
    tmp_path, idx_dir
):
    prepare.prepare_idx("fashion_mnist", tmp_path, idx_dir)
    source = sources.open_source(data_config("fashion_mnist", tmp_path), "train")
    assert source.class_names[9] == "Ankle boot"
    with pytest.raises(UserError, match="'My Set'"):
        prepare.prepare_idx("My Set", tmp_path, idx_dir)


@pytest.mark.extended
def test_preparing_and_reading_leave_tensorflow_alone(tmp_path, idx_dir):
    script = (
        "import sys\n"
        "from gsg_jax.data import open, prepare\n"
        "assert 'tensorflow_datasets' not in sys.modules, 'imported too early'\n"
        f"prepare.prepare_idx('tiny', {str(tmp_path)!r}, {str(idx_dir)!r})\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = Path(prepare.__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, timeout=60)


def idx_labels(*labels):
    return bytes([0, 0, 8, 1]) + struct.pack(">I", len(labels)) + bytes(labels)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images-idx3", lambda content: gzip.compress(content[:-1])),
        ("images-idx3", lambda content: gzip.compress(b"\0\0\x0d\3" + content[4:])),
        ("images-idx3", lambda content: content),
        ("images-idx3", None),
        ("labels-idx1", lambda content: gzip.compress(idx_labels(*[1] * 20))),
        ("labels-idx1", lambda content: gzip.compress(idx_labels(*[10] * 21))),
    ],
    ids=["cut", "header", "no gzip", "missing", "fewer labels", "large label"],
)
def test_broken_idx_files_are_named_and_leave_nothing_prepared(
    tmp_path, idx_dir, name, damage, capsys
):
    path = idx_dir / f"t10k-{name}-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    path.unlink() if damage is None else path.write_bytes(damage(content))
    out = tmp_path / "out"
    assert prepare.main(["tiny", f"--data_dir={out}", f"--idx_dir={idx_dir}"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "t10k" in message
    with pytest.raises(UserError, match="no data set 'tiny'"):
        sources.open_source(data_config("tiny", out), "train")


def test_an_interrupted_preparation_does_not_count_as_prepared(tmp_path, idx_dir, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare.Image, "fromarray", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare_idx("tiny", tmp_path / "out", idx_dir)
    with pytest.raises(UserError, match="no data set 'tiny'"):
        sources.open_source(data_config("tiny", tmp_path / "out"), "train")
    prepare.prepare_idx("tiny", tmp_path / "out", idx_dir)
    assert len(sources.open_source(data_config("tiny", tmp_path / "out"), "train")) == 43


def test_official_sets_ask_for_tensorflow_in_one_line(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else real(name)
    )
    assert prepare.main(["cifar10", f"--data_dir={tmp_path}"]) == 1
    message = capsys.readouterr().err
    assert "pip install 'gsg_jax[prepare]'" in message
    assert message.count("\n") == 1


def test_the_name_is_checked_before_tensorflow_is_asked_for(tmp_path, capsys):
    assert prepare.main(["cifar100x", f"--data_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: TFDS has no data set 'cifar100x': did you mean cifar100"
    )


@pytest.mark.parametrize("arguments", [["tiny"], ["tiny", "--embedded"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        prepare.main(arguments)
    assert exit_info.value.code == 2 and capsys.readouterr().err


def test_embedded_subset_is_balanced_and_the_same_each_time(tmp_path, idx_dir):
    paths = [
        prepare.write_embedded(idx_dir, tmp_path / n, train_per_class=3, test_per_class=2)
        for n in ("a.npz", "b.npz")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["a.npz", "b.npz"]
    whole, labels = prepare.read_idx_split(idx_dir, "train")
    by_content = {image.tobytes(): label for image, label in zip(whole, labels, strict=True)}
    with np.load(paths[0], allow_pickle=False) as arrays:
        assert arrays["train_images"].shape == (30, 6, 5, 1)
        assert np.bincount(arrays["test_labels"]).tolist() == [2] * 10
        for image, label in zip(arrays["train_images"], arrays["train_labels"], strict=True):
            assert by_content[image.tobytes()] == label


def test_embedded_subset_of_too_few_images_is_refused_and_writes_nothing(tmp_path, idx_dir, capsys):
    arguments = ["x", "--embedded", f"--idx_dir={idx_dir}", f"--data_dir={tmp_path / 'out'}"]
    assert prepare.main(arguments) == 1
    assert "1000 are needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
