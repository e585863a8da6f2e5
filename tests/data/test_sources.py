"""Own folders: what is read, what is skipped, what is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.data import folder as folders
from gsg_jax.data import open as sources
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.loader import TrainLoader
from gsg_jax.data.source import Subset
from gsg_jax.data.summary import summary
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


def test_a_missing_folder_a_file_and_no_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        opened(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        opened(tmp_path / "file")
    with pytest.raises(UserError, match="--config.data.dir"):
        opened("")


def test_a_file_that_breaks_after_opening_is_named_when_it_is_read(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", size=(9, 9))
    source = opened(tmp_path)
    assert not isinstance(source, sources.ArraySource) and source.image_shape is None
    (tmp_path / "b.png").write_bytes(b"gone bad")
    with pytest.raises(UserError, match="b.png"):
        source.image(1)
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


def test_many_files_are_checked_by_their_headers_and_not_held(
    tmp_path, monkeypatch, warnings_logged
):
    monkeypatch.setattr(folders, "FULL_CHECK_LIMIT", 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", size=(6, 4))
    save(tmp_path / "b.jpg", size=(6, 4))
    save(tmp_path / "turned.jpg", size=(4, 6), exif=exif)
    (tmp_path / "c.png").write_bytes(b"broken")
    source = opened(tmp_path)
    assert not isinstance(source, sources.ArraySource)
    assert len(source) == 3
    assert source.image_shape == (4, 6, 3)
    assert [source.image(i).shape for i in range(3)] == [(4, 6, 3)] * 3
    assert "c.png" in warnings_logged[0]


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
