"""Own folders: what is read, what is skipped, what is refused."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.data import folder as folders
from gsg_jax.data import open as sources
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.loader import TrainLoader
from gsg_jax.data.source import BrokenImage, Subset, in_memory
from gsg_jax.data.summary import summary
from gsg_jax.run.identity import identity
from tests.runs import ROOT
from tests.small import data_config
from tests.small import save_image as save

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def opened(directory, split="train", name="folder", **changes):
    return sources.open_source(data_config(name, directory, **changes), split)


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(folders, "say", messages.append)
    return messages


def test_class_folders_label_by_sorted_name_with_nested_files(tmp_path):
    save(tmp_path / "zebra" / "1.png", BLUE)
    save(tmp_path / "ant" / "deep" / "er" / "2.png", RED)
    save(tmp_path / "ant" / "1.PNG", GREEN)
    save(tmp_path / "ünïcode 猫" / "naïve ☃.png", RED)
    (tmp_path / "without images").mkdir()
    source = opened(tmp_path)
    assert source.class_names == ("ant", "zebra", "ünïcode 猫")
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert source.labels.dtype == np.int32
    assert [tuple(source.image(i)[0, 0]) for i in range(4)] == [GREEN, RED, BLUE, RED]
    assert opened(tmp_path, "test") is None


def test_flat_images_have_no_labels_and_hidden_and_other_files_are_left_out(
    tmp_path, warnings_logged
):
    for name in ("b.png", "a.png", ".hidden.png", ".cache/thumb.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = opened(tmp_path)
    assert source.labels is None and source.class_names == ()
    assert len(source) == 2 and warnings_logged == []


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders_are_the_splits(tmp_path, test_name):
    for name in ("train/a", "train/b", "train/c", f"{test_name}/c"):
        save(tmp_path / name / "1.png")
    if test_name == "val":
        save(tmp_path / "test" / "1.png")  # without labels: a labelled val is preferred
    assert opened(tmp_path).labels.tolist() == [0, 1, 2]
    test = opened(tmp_path, "test")
    # A label means the same in both, though test lacks a and b.
    assert test.labels.tolist() == [2]
    assert test.class_names == ("a", "b", "c")
    assert opened(tmp_path, "test", test_split="") is None


@pytest.mark.parametrize(
    "test_name", ["TEST", "Val", "valid", "validation", "eval", "dev", "Testing"]
)
def test_known_names_are_splits_in_any_case(tmp_path, test_name):
    train_name = "Training" if test_name == "Testing" else "Train"
    for name in (f"{train_name}/a", f"{train_name}/b", f"{test_name}/b", "raw"):
        save(tmp_path / name / "1.png")
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert train.class_names == test.class_names == ("a", "b")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1])
    assert summary(train, test) == [
        "folder: 2 images in 2 classes, 1 to test",
        f"{train_name}/ is the training set, {test_name}/ the test set, not used: raw/",
    ]


def test_a_folder_without_a_test_set_is_summed_up_in_one_line(tmp_path):
    save(tmp_path / "a.png")
    assert summary(opened(tmp_path), None) == ["folder: 1 images, no test set"]


def test_a_test_class_that_training_lacks_and_images_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "test" / "aa" / "1.png")
    with pytest.raises(UserError, match="'aa'"):
        opened(tmp_path, "test")
    save(tmp_path / "train" / "stray.png")
    with pytest.raises(UserError, match="stray.png"):
        opened(tmp_path)


def test_a_class_named_train_is_a_class_and_train_alone_is_the_training_set(tmp_path):
    save(tmp_path / "train" / "electric" / "1.png")
    assert opened(tmp_path).class_names == ("electric",)
    assert opened(tmp_path, "test") is None
    save(tmp_path / "plane" / "1.png")
    assert opened(tmp_path).class_names == ("plane", "train")


def test_broken_files_are_named_in_one_warning_and_left_as_they_are(tmp_path, warnings_logged):
    save(tmp_path / "a" / "good.jpg", size=(64, 48), quality=95)
    save(tmp_path / "b" / "good.png", size=(64, 48))
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "whole.jpg")
    content = (tmp_path / "a" / "whole.jpg").read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "b" / "empty.png").write_bytes(b"")
    (tmp_path / "b" / "text.webp").write_text("<html>not found</html>")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    source = opened(tmp_path)
    assert source.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(source.image(2), np.full((48, 64, 3), RED, np.uint8))
    assert len(warnings_logged) == 1
    assert "3 of 6" in warnings_logged[0]
    for name in ("cut.jpg", "empty.png", "text.webp"):
        assert name in warnings_logged[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("content", [[], ["a.png"], ["a/a.png", "b/b.jpg"]])
def test_a_folder_without_usable_images_is_refused_with_the_count(tmp_path, content):
    for name in content:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(UserError, match=f"no usable image \\({len(content)} tried\\)") as refusal:
        opened(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_breaks_after_opening_is_named_when_it_is_read(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", size=(9, 9))
    source = opened(tmp_path)
    assert not isinstance(source, sources.ArraySource) and source.image_shape is None
    (tmp_path / "b.png").write_bytes(b"gone bad")
    with pytest.raises(BrokenImage, match="b.png"):
        source.image(1)
    train = TrainLoader(source, batch_size=2, seed=0, crops=CropRecipe(2, 4))
    assert next(train.iterate(0))["image"].any(axis=(1, 2, 3, 4)).all()
    assert list(train.skipped) == [1] and "b.png" in train.skipped[1]
    # A file that is gone may come back: a run that is resumed would not be the same without it.
    (tmp_path / "b.png").unlink()
    stream = TrainLoader(source, batch_size=2, seed=0, crops=CropRecipe(2, 4)).iterate(0)
    with pytest.raises(UserError, match="b.png"):
        next(stream)


def test_a_decompression_bomb_and_links_to_themselves_are_skipped(tmp_path, warnings_logged):
    save(tmp_path / "good.png")
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    for name in ("loop.png", "loop"):
        (tmp_path / name).symlink_to(name)
    assert len(opened(tmp_path)) == 1
    (warning,) = warnings_logged
    assert "bomb.png" in warning and "loop.png" in warning


def test_images_of_one_shape_are_held_in_memory_up_to_the_limit(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", (i, 0, 0), size=(512, 512))
    (tmp_path / "2.png").write_bytes(b"broken")
    held = opened(tmp_path, memory_limit_mb=3.75)  # five images of 0.75 MiB, exactly
    assert isinstance(held, sources.ArraySource)
    assert held.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    read = opened(tmp_path, memory_limit_mb=3)
    assert not isinstance(read, sources.ArraySource)
    assert read.image_shape == (512, 512, 3)
    for i in range(4):
        np.testing.assert_array_equal(read.image(i), held.image(i))


def test_an_image_whose_header_lies_about_its_shape_is_left_out(capsys):
    images = np.arange(3 * 2 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 3)
    source = sources.ArraySource("x", images, np.array([0, 1, 0]), ("a", "b"))
    held = in_memory(source, lambda rows: [x.swapaxes(0, i == 1) for i, x in enumerate(images)])
    np.testing.assert_array_equal(held.images, images[[0, 2]])
    assert held.labels.tolist() == [0, 0]
    assert "left out: image 1 is (4, 2, 3), the others (2, 4, 3)" in capsys.readouterr().err


def test_many_files_are_checked_by_their_headers_and_not_held(
    tmp_path, monkeypatch, warnings_logged
):
    monkeypatch.setattr(folders, "FULL_CHECK_LIMIT", 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", size=(65, 64))
    save(tmp_path / "b.jpg", size=(65, 64))
    save(tmp_path / "turned.jpg", size=(64, 65), exif=exif)
    (tmp_path / "c.png").write_bytes(b"broken")
    source = opened(tmp_path)
    assert not isinstance(source, sources.ArraySource)
    assert len(source) == 3
    assert source.image_shape == (64, 65, 3)
    assert [source.image(i).shape for i in range(3)] == [(64, 65, 3)] * 3
    assert "c.png" in warnings_logged[0]


@pytest.mark.parametrize("case", ["small", "of two sizes", "too many"])
def test_many_small_images_of_one_size_are_held_with_the_same_pixels(tmp_path, monkeypatch, case):
    rng = np.random.default_rng(0)
    for n in range(4):
        side = 16 + (case == "of two sizes" and n == 3)
        pixels = rng.integers(0, 256, (32, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    held = opened(tmp_path)
    monkeypatch.setattr(folders, "FULL_CHECK_LIMIT", 3)
    source = opened(tmp_path, memory_limit_mb=0.005 if case == "too many" else 10)
    assert isinstance(source, sources.ArraySource) == (case == "small")
    assert len(source) == len(held) == 4 and source.left_out == held.left_out
    for i in range(4):
        np.testing.assert_array_equal(source.image(i), held.image(i))


@pytest.mark.parametrize("limit", [2, 20_000])
def test_left_out_files_have_their_reasons_at_every_size_of_a_folder(
    tmp_path, monkeypatch, warnings_logged, limit
):
    monkeypatch.setattr(folders, "FULL_CHECK_LIMIT", limit)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("a", "b", "cut"):
        Image.fromarray(noise).save(tmp_path / f"{name}.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "gone.png").symlink_to("nowhere")
    source = opened(tmp_path)
    assert [path.name for path in source.paths] == ["a.jpg", "b.jpg"]
    assert source.left_out == (
        f"{tmp_path}/gone.png (not a file)",
        f"{tmp_path}/cut.jpg (image file is truncated (113 bytes not processed))",
        f"{tmp_path}/text.png (not an image, or of another format)",
    )
    (line,) = warnings_logged
    assert "3 of 5" in line and "text.png (not an image" in line


def test_what_pillow_warns_of_reaches_nobody(tmp_path):
    save(tmp_path / "large.png", size=(10, 10))
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    save(tmp_path / "exif.jpg", exif=exif)
    code = (
        "import sys; from gsg_jax.data.folder import open_folder; from PIL import Image;"
        "Image.MAX_IMAGE_PIXELS = 60; print(len(open_folder(sys.argv[1], 'train', 0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_names_of_any_bytes_are_read_and_have_a_digest(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / "a" / name)
    save(tmp_path / "a" / "b.png", size=(5, 5))
    source = opened(tmp_path)
    assert source.image(1).shape == (4, 6, 3) and source.paths[1].name == name
    (tmp_path / "a" / name).rename(tmp_path / "a" / "cafe.png")
    assert identity({"train": source}, "") != identity({"train": opened(tmp_path)}, "")


def test_folders_that_cannot_be_listed_are_left_out_with_the_reason(
    tmp_path, monkeypatch, warnings_logged
):
    save(tmp_path / "a.png")
    save(tmp_path / "lost+found" / "b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list everything
    source = opened(tmp_path)
    assert len(source) == 1 and source.labels is None
    assert source.left_out == (f"{tmp_path}/lost+found/ (Permission denied)",)
    assert warnings_logged == [
        f"warning: 1 folders in {tmp_path} are left out: lost+found/ (Permission denied)"
    ]


@pytest.mark.parametrize(("key", "value"), [("train_split", "all"), ("test_split", "holdout")])
def test_splits_that_only_tfds_could_have_are_refused(tmp_path, key, value):
    save(tmp_path / "a.png")
    for name in ("folder", "embedded"):
        with pytest.raises(UserError, match=f"--config.data.{key}={value}: '{name}' has no such"):
            opened(tmp_path, name=name, **{key: value})


def test_a_part_is_the_images_it_was_given_with_labels_and_paths(tmp_path):
    for n in range(4):
        save(tmp_path / "ab"[n % 2] / f"{n}.png", (10 * n, 0, 0))
    whole = opened(tmp_path)
    part = Subset(whole, np.array([3, 0]))
    assert len(part) == 2 and part.class_names == ("a", "b") and part.image_shape == (4, 6, 3)
    assert [int(part.image(i)[0, 0, 0]) for i in range(2)] == [30, 0]
    assert part.labels.tolist() == [1, 0]
    assert [path.name for path in part.paths] == ["3.png", "0.png"]
