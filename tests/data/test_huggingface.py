"""Sets of Hugging Face `datasets`: the same images as other sources, and no request for a path."""

import io
import pathlib
import pickle
import shutil
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UsageError, UserError
from gsg_jax.data import huggingface
from gsg_jax.data.decode import decode
from gsg_jax.data.open import open_source
from gsg_jax.data.source import ArraySource, BrokenImage
from gsg_jax.run.identity import identity
from tests.runs import assert_same, done, tiny
from tests.small import data_config

pytestmark = pytest.mark.extended  # imports `datasets`, for seconds


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The library, with its cache in a folder of the tests."""
    datasets = pytest.importorskip("datasets")
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    return datasets


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*where):
        raise AssertionError(f"a request to {where}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def lines_said(monkeypatch):
    lines = []
    monkeypatch.setattr(huggingface, "say", lines.append)
    return lines


def opened(path, split="train", **changes):
    return open_source(data_config(f"hf:{path}", "", **changes), split)


def encoded(seed, mode="RGB", size=(9, 7), turn=0, kind="PNG"):
    """The bytes of a random image file; size is (W, H)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
    exif, file = Image.Exif(), io.BytesIO()
    if turn:
        exif[0x0112] = turn
    image.save(file, kind, exif=exif)
    return file.getvalue()


def make(datasets, files, labels=None, image="image", label="label"):
    features = {image: datasets.Image()}
    columns = {image: [{"bytes": file, "path": None} for file in files]}
    if labels is not None:
        features[label] = datasets.ClassLabel(names=["ant", "bee"])
        columns[label] = labels
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize("form", ["saved", "parquet", "parquet files", "images"])
def test_every_local_form_gives_the_same_images_and_labels(datasets, tmp_path, form):
    files = [encoded(seed, size=(9 + seed % 2, 7)) for seed in range(6)]
    labels = [0, 0, 0, 1, 1, 1]
    train, test = make(datasets, files, labels, "photo", "kind"), None
    path = tmp_path / "set"
    if form == "saved":
        test = train.select([5])
        datasets.DatasetDict({"train": train, "test": test}).save_to_disk(path)
    elif form == "parquet":
        train.to_parquet(path := tmp_path / "set.parquet")
    elif form == "parquet files":
        path.mkdir()
        train.to_parquet(path / "train-00000.parquet")
    else:
        for number, (file, label) in enumerate(zip(files, labels, strict=True)):
            folder = path / "train" / ("ant", "bee")[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(file)
    source = opened(path)
    assert (source.class_names, source.labels.tolist()) == (("ant", "bee"), labels)
    assert source.image_shape is None and source.labels.dtype == np.int32
    for read in (source, pickle.loads(pickle.dumps(source))):
        for i in (5, 0, 3):
            np.testing.assert_array_equal(read.image(np.int64(i)), decode(files[i]))
    if test:
        np.testing.assert_array_equal(opened(path, "test").image(0), decode(files[5]))
    else:
        with pytest.raises(UserError, match="no split 'test'.* one of train .test_split=''"):
            opened(path, "test")
        assert opened(path, "test", test_split="") is None
    known = identity({"train": source}, "")
    assert known == identity({"train": opened(path)}, "") and "files" in known["train"]
    changed = next(path.rglob("0.png")) if form == "images" else pathlib.Path(source.files[0])
    with changed.open("ab") as file:
        file.write(b"more")
    assert identity({"train": source}, "") != known


def test_images_of_one_shape_are_held_in_memory_and_converted_as_in_folders(datasets, tmp_path):
    files = [
        encoded(0, "L"),
        encoded(1, "CMYK", kind="JPEG"),
        encoded(2, size=(7, 9), turn=6, kind="JPEG"),
        encoded(3, "P"),
    ]
    make(datasets, files).save_to_disk(tmp_path / "set")
    held = opened(tmp_path / "set")
    assert isinstance(held, ArraySource) and held.image_shape == (7, 9, 3)
    assert held.labels is None and held.class_names == ()
    read = opened(tmp_path / "set", memory_limit_mb=0)
    assert read.image_shape == (7, 9, 3) and not isinstance(read, ArraySource)
    for i, file in enumerate(files):
        wanted = decode(file, exif=True)
        np.testing.assert_array_equal(held.image(i), wanted)
        np.testing.assert_array_equal(read.image(i), wanted)


def test_labels_are_classes_or_whole_numbers_and_unknown_ones_are_minus_one(
    datasets, tmp_path, lines_said
):
    files = [encoded(seed) for seed in range(3)]
    whole = make(datasets, files).add_column("label", [4, None, 0]).add_column("width", [9, 9, 9])
    other = make(datasets, files).add_column("label", [6, 1, 0]).add_column("width", [9, 9, 9])
    datasets.DatasetDict({"train": whole, "test": other}).save_to_disk(tmp_path / "whole")
    source = opened(tmp_path / "whole")
    assert source.labels.tolist() == [4, -1, 0]
    assert source.class_names == tuple("0123456") == opened(tmp_path / "whole", "test").class_names
    parts = {"train": whole, "test": whole.remove_columns("label")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "half")
    assert opened(tmp_path / "half").labels.tolist() == [4, -1, 0]
    assert opened(tmp_path / "half", "test").labels is None
    make(datasets, files).add_column("width", [1, 2, 3]).save_to_disk(tmp_path / "none")
    assert opened(tmp_path / "none").labels is None and lines_said == []
    both = make(datasets, files, [0, 1, -1]).add_column("coarse", [0, 0, 0])
    both = both.cast_column("coarse", datasets.ClassLabel(names=["insect"]))
    both.save_to_disk(tmp_path / "both")
    assert opened(tmp_path / "both").labels.tolist() == [0, 1, -1]
    assert len(lines_said) == 1 and "label are taken" in lines_said[0]
    make(datasets, files).add_column("label", [10**10, 1, 2]).save_to_disk(tmp_path / "ids")
    make(datasets, files).add_column("label", [[1, 0], [1], []]).save_to_disk(tmp_path / "several")
    assert opened(tmp_path / "several").labels is None
    with pytest.raises(UserError, match="go up to 10000000000: they must be below 1,000,000"):
        opened(tmp_path / "ids")


def test_damaged_images_are_left_out_or_named_when_they_are_read(datasets, tmp_path):
    files = [encoded(0), encoded(1)[:40], encoded(2)]
    make(datasets, files, [0, 1, 1]).save_to_disk(tmp_path / "set")
    held = opened(tmp_path / "set")
    assert held.labels.tolist() == [0, 1] and len(held.left_out) == 1
    np.testing.assert_array_equal(held.image(1), decode(files[2]))
    read = opened(tmp_path / "set", memory_limit_mb=0)
    assert len(read) == 3 and read.image_shape == held.image_shape
    with pytest.raises(BrokenImage, match="cannot decode image 1 of hf:"):
        read.image(1)


def test_what_cannot_be_opened_is_one_line(datasets, tmp_path, lines_said, monkeypatch):
    make(datasets, [encoded(1)[:40]]).save_to_disk(tmp_path / "broken")
    with pytest.raises(UserError, match="no image that can be decoded"):
        opened(tmp_path / "broken")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match="has 0 columns of images: .* text .Value."):
        opened(tmp_path / "text")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot open hf:"):
        opened(tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="there is no such path"):
        opened(tmp_path / "nothing")
    with pytest.raises(UsageError, match="name=hf:DIR, DIR=~nosuchuser/x: .*whole path"):
        opened("~nosuchuser/x")
    with pytest.raises(UserError, match="leave dir empty"):
        open_source(data_config("hf:x", tmp_path), "train")
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot open hf:"):
        opened(script)
    assert not (tmp_path / "sprung").exists() and lines_said == []
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or 1 / 0)
    with pytest.raises(UserError, match="cannot open hf:user/set .*division"):
        opened("user/set")
    assert asked == ["user/set"] and "asked for at the Hugging Face Hub" in lines_said[0]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'gsg_jax\[hf\]'"):
        opened(tmp_path / "broken")


def test_a_run_resumes_bit_for_bit(datasets, tmp_path):
    files = [encoded(seed, size=(14, 14)) for seed in range(40)]
    labels = [seed % 2 for seed in range(40)]
    rows = make(datasets, files, labels)
    datasets.DatasetDict({"train": rows, "test": rows.select(range(8))}).save_to_disk(
        tmp_path / "set"
    )
    changes = [f"--config.data.name=hf:{tmp_path / 'set'}", "--config.data.dir="]
    changes += ["--config.data.crop=host", "--config.data.memory_limit_mb=0"]

    def flags(workdir, *more):
        return tiny("simsiam", tmp_path, workdir, *changes, *more)

    wanted, _ = done(*flags(tmp_path / "whole"))
    # As if it had been stopped after its first checkpoint.
    stopped = tmp_path / "stopped"
    done(*flags(stopped))
    shutil.rmtree(stopped / "checkpoints" / "10")
    last, _ = done(*flags(stopped))
    assert_same(stopped, last, tmp_path / "whole", wanted)
