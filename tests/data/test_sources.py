"""Own folders and TFDS sets: what is read, what is skipped, what is refused."""

import io
import json
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.data import folder as folders
from gsg_jax.data import open as sources
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.decode import DECODE_ERRORS, decode
from gsg_jax.data.loader import TrainLoader
from gsg_jax.data.source import Subset
from gsg_jax.data.tfds import is_prepared

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def config(directory, **changes):
    data = {"name": "folder", "dir": str(directory), "train_split": "train", "test_split": "test"}
    return ConfigDict({**data, "memory_limit_mb": 10, **changes})


def open_train(directory, **changes):
    return sources.open_source(config(directory, **changes), "train")


def save(path, color=RED, size=(6, 4), **options):
    """Writes an image file, size is (W, H)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(folders, "say", messages.append)
    return messages


# Folders: the forms


def test_class_folders_label_by_sorted_name_with_nested_files(tmp_path):
    save(tmp_path / "zebra" / "1.png", BLUE)
    save(tmp_path / "ant" / "deep" / "er" / "2.png", RED)
    save(tmp_path / "ant" / "1.PNG", GREEN)
    save(tmp_path / "ünïcode 猫" / "naïve ☃.png", RED)
    (tmp_path / "without images").mkdir()
    source = open_train(tmp_path)
    assert source.class_names == ("ant", "zebra", "ünïcode 猫")
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert source.labels.dtype == np.int32
    assert [tuple(source.image(i)[0, 0]) for i in range(4)] == [GREEN, RED, BLUE, RED]
    assert sources.open_source(config(tmp_path), "test") is None


def test_flat_images_have_no_labels(tmp_path):
    save(tmp_path / "b.png")
    save(tmp_path / "a.png")
    source = open_train(tmp_path)
    assert source.labels is None
    assert source.class_names == ()
    assert len(source) == 2


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders_are_the_splits(tmp_path, test_name):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "train" / "b" / "1.png")
    save(tmp_path / "train" / "c" / "1.png")
    save(tmp_path / test_name / "c" / "1.png")
    assert open_train(tmp_path).labels.tolist() == [0, 1, 2]
    test = sources.open_source(config(tmp_path), "test")
    # A label means the same in both, though test lacks a and b.
    assert test.labels.tolist() == [2]
    assert test.class_names == ("a", "b", "c")
    assert sources.open_source(config(tmp_path, test_split=""), "test") is None


def test_a_labelled_val_is_preferred_to_an_unlabelled_test(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "val" / "a" / "1.png", BLUE)
    save(tmp_path / "test" / "1.png", GREEN)
    assert tuple(sources.open_source(config(tmp_path), "test").image(0)[0, 0]) == BLUE


def test_a_test_class_that_training_lacks_is_refused(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "test" / "aa" / "1.png")
    with pytest.raises(UserError, match="'aa'"):
        sources.open_source(config(tmp_path), "test")


def test_a_class_named_train_is_a_class_and_train_alone_is_the_training_set(tmp_path):
    save(tmp_path / "train" / "electric" / "1.png")
    assert open_train(tmp_path).class_names == ("electric",)
    assert sources.open_source(config(tmp_path), "test") is None
    save(tmp_path / "plane" / "1.png")
    assert open_train(tmp_path).class_names == ("plane", "train")


def test_hidden_files_and_other_files_are_left_out(tmp_path, warnings_logged):
    save(tmp_path / "a.png")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".cache" / "thumb.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert len(open_train(tmp_path)) == 1
    assert warnings_logged == []


def test_images_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "stray.png")
    with pytest.raises(UserError, match="stray.png"):
        open_train(tmp_path)


# Folders: what cannot be used


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
    source = open_train(tmp_path)
    assert source.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(source.image(2), np.full((48, 64, 3), RED, np.uint8))
    assert len(warnings_logged) == 1
    assert "3 of 6" in warnings_logged[0]
    for name in ("cut.jpg", "empty.png", "text.webp"):
        assert name in warnings_logged[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_the_warning_names_no_more_than_the_first_few(tmp_path, warnings_logged):
    save(tmp_path / "good.png")
    for i in range(9):
        (tmp_path / f"broken{i}.png").write_bytes(b"x")
    open_train(tmp_path)
    assert "9 of 10" in warnings_logged[0]
    assert warnings_logged[0].count("broken") == 5


@pytest.mark.parametrize("content", [[], ["a.png"], ["a/a.png", "b/b.jpg"]])
def test_a_folder_without_usable_images_is_refused_with_the_count(tmp_path, content):
    for name in content:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(UserError, match=f"no usable image \\({len(content)} tried\\)") as refusal:
        open_train(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_folder_a_file_and_no_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_train(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        open_train(tmp_path / "file")
    with pytest.raises(UserError, match="--config.data.dir"):
        open_train("")


def test_a_file_that_breaks_after_opening_is_named_when_it_is_read(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", size=(9, 9))
    source = open_train(tmp_path)
    (tmp_path / "b.png").write_bytes(b"gone bad")
    with pytest.raises(UserError, match="b.png"):
        source.image(1)
    (tmp_path / "b.png").unlink()
    stream = TrainLoader(source, batch_size=2, seed=0, crops=CropRecipe(2, 4)).iterate(0)
    with pytest.raises(UserError, match="b.png"):
        next(stream)


def test_a_decompression_bomb_is_skipped_with_the_warning(tmp_path, warnings_logged):
    save(tmp_path / "good.png")
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert len(open_train(tmp_path)) == 1
    assert "bomb.png" in warnings_logged[0]


# Folders: memory


def test_images_of_one_shape_are_held_in_memory_up_to_the_limit(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", (i, 0, 0), size=(512, 512))
    (tmp_path / "2.png").write_bytes(b"broken")
    held = open_train(tmp_path, memory_limit_mb=3.75)  # five images of 0.75 MiB, exactly
    assert isinstance(held, sources.ArraySource)
    assert held.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    read = open_train(tmp_path, memory_limit_mb=3)
    assert not isinstance(read, sources.ArraySource)
    assert read.image_shape == (512, 512, 3)
    for i in range(4):
        np.testing.assert_array_equal(read.image(i), held.image(i))


def test_images_of_differing_shapes_are_not_held(tmp_path):
    save(tmp_path / "a.png", size=(6, 4))
    save(tmp_path / "b.png", size=(4, 6))
    source = open_train(tmp_path)
    assert not isinstance(source, sources.ArraySource)
    assert source.image_shape is None
    assert source.image(1).shape == (6, 4, 3)


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
    source = open_train(tmp_path)
    assert not isinstance(source, sources.ArraySource)
    assert len(source) == 3
    assert source.image_shape == (4, 6, 3)
    assert [source.image(i).shape for i in range(3)] == [(4, 6, 3)] * 3
    assert "c.png" in warnings_logged[0]


# Decoding


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})],
)
@pytest.mark.parametrize("size", [(1, 1), (17, 5)])
def test_every_format_gives_the_pixels_that_were_saved(form, options, size):
    image = Image.new("RGB", size, (200, 100, 50))
    pixels = decode(encode(image, form, **options))
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(image).astype(int)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_on_request(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    turns = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(decode(encoded, exif=True), turns[orientation](pixels))
    np.testing.assert_array_equal(decode(encoded), pixels)


def test_every_kind_of_image_becomes_rgb():
    gray = Image.new("L", (2, 2), 77)
    assert decode(encode(gray))[0, 0].tolist() == [77, 77, 77]
    palette = Image.new("RGB", (2, 2), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode(encode(palette))[0, 0].tolist() == [10, 200, 30]
    deep = Image.fromarray(np.full((2, 2), 77 * 257, np.uint16))
    assert decode(encode(deep))[0, 0].tolist() == [77, 77, 77]
    one_bit = Image.new("1", (2, 2), 1)
    assert decode(encode(one_bit))[0, 0].tolist() == [255, 255, 255]
    cmyk = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(cmyk[0, 0].astype(int) - RED).max() <= 3


def test_what_is_transparent_becomes_white():
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    assert decode(encode(rgba))[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert decode(encode(rgba.convert("LA")))[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    assert decode(encode(palette, transparency=1))[0].tolist() == [[9, 9, 9], [255, 255, 255]]


def test_one_channel_is_luminance():
    pixels = decode(encode(Image.new("RGB", (3, 2), RED)), channels=1)
    assert pixels.shape == (2, 3, 1)
    assert np.unique(pixels).tolist() == [76]  # 0.299 * 255


def test_formats_that_start_other_programs_are_refused():
    with pytest.raises(DECODE_ERRORS):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


# TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A set of photographs with labels and one of gray images without, as official ones are."""
    import tensorflow_datasets as tfds

    class TinyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.1.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=self.shape), "id": tfds.features.Text()}
            if self.labelled:
                features["label"] = tfds.features.ClassLabel(names=["cat", "dog"])
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

        def _generate_examples(self, num_examples):
            for i in range(num_examples):
                size = (8, 6) if self.shape[0] else (8 + i, 6)
                label = {"label": i % 2} if self.labelled else {}
                mode, color = ("L", i) if self.shape[-1] == 1 else ("RGB", (i, 0, 0))
                image = io.BytesIO(encode(Image.new(mode, size, color)))
                yield i, {"image": image, "id": str(i), **label}

    folder = tmp_path_factory.mktemp("tfds")
    for name, shape, labelled in (
        ("photos", (None, None, 3), True),
        ("gray", (6, 8, 1), False),
    ):
        made = type(
            name,
            (TinyBuilder,),
            {"shape": shape, "labelled": labelled, "name": name},
            skip_registration=True,
        )
        made(data_dir=folder).download_and_prepare(file_format="array_record")
    return folder


def open_tfds(folder, name, **changes):
    return open_train(folder, name=name, **changes)


def test_tfds_photographs_of_differing_sizes_are_read_one_by_one(tfds_dir):
    source = open_tfds(tfds_dir, "photos")
    assert not isinstance(source, sources.ArraySource)
    assert source.image_shape is None
    assert [source.image(i).shape for i in (0, 7)] == [(6, 8, 3), (6, 15, 3)]
    assert source.image(7)[0, 0].tolist() == [7, 0, 0]
    assert source.class_names == ("cat", "dog")
    assert source.labels.dtype == np.int32
    assert source.labels.tolist() == [0, 1] * 10


def test_a_copy_of_tfds_photographs_in_another_process_reads_the_same(tfds_dir):
    source = open_tfds(tfds_dir, "photos")
    source.image(3)  # its files are open
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 20 and copy.class_names == source.class_names
    for i in range(20):
        np.testing.assert_array_equal(copy.image(i), source.image(i))
    assert copy.labels.tolist() == source.labels.tolist()


def test_tfds_gray_images_keep_one_channel_and_are_held_if_they_fit(tfds_dir):
    held = open_tfds(tfds_dir, "gray")
    assert isinstance(held, sources.ArraySource)
    assert held.images.shape == (20, 6, 8, 1)
    assert held.images[:, 0, 0, 0].tolist() == list(range(20))
    assert held.labels is None
    read = open_tfds(tfds_dir, "gray", memory_limit_mb=0)
    assert not isinstance(read, sources.ArraySource)
    assert read.image_shape == (6, 8, 1)
    np.testing.assert_array_equal([read.image(i) for i in range(20)], held.images)


def test_tfds_sub_splits_configs_and_versions_are_understood(tfds_dir):
    source = open_tfds(tfds_dir, "photos:2.1.0", train_split="train[50%:70%]")
    assert [int(source.image(i)[0, 0, 0]) for i in range(len(source))] == [10, 11, 12, 13]
    assert source.labels.tolist() == [0, 1, 0, 1]
    test = sources.open_source(config(tfds_dir, name="gray", test_split="test[:2]"), "test")
    assert len(test) == 2
    nothing = config(tfds_dir, name="gray", test_split="")
    assert sources.open_source(nothing, "test") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "photo"}, "photos"),
        ({"name": "imagenet2012"}, "gsg_jax.data.prepare imagenet2012 --data_dir="),
        ({"name": "photos:9.9.9"}, "photos:9.9.9"),
        ({"name": "photos/large"}, "photos/large"),
        ({"name": "what is this"}, "what is this"),
        ({"name": "photos", "train_split": "validation"}, "train, test"),
        ({"name": "photos", "train_split": "train[:"}, "sub-splits"),
        ({"name": "photos", "train_split": ""}, "no split ''"),
        ({"name": "photos", "train_split": "train[:0]"}, "holds no images"),
    ],
)
def test_tfds_sets_that_are_not_there_are_refused_in_one_line(tfds_dir, changes, message):
    with pytest.raises(UserError) as refusal:
        open_train(tfds_dir, **changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_set_says_where_it_was_looked_for_and_what_is_prepared_there(tfds_dir):
    with pytest.raises(UserError) as refusal:
        open_tfds(tfds_dir, "grey")
    assert str(tfds_dir) in str(refusal.value)
    assert "Prepared there: gray" in str(refusal.value)


def test_a_set_in_tfrecord_must_be_prepared_again(tfds_dir, tmp_path):
    # Writing TFRecord needs TensorFlow, so the description is all there is.
    target = tmp_path / "photos" / "2.1.0"
    target.mkdir(parents=True)
    made = tfds_dir / "photos" / "2.1.0"
    (target / "features.json").write_bytes((made / "features.json").read_bytes())
    (target / "label.labels.txt").write_bytes((made / "label.labels.txt").read_bytes())
    info = json.loads((made / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="array_record") as refusal:
        open_tfds(tmp_path, "photos")
    assert "tfrecord" in str(refusal.value)


@pytest.mark.parametrize("damage", ["cut", "cut between blocks", "changed", "gone"])
@pytest.mark.parametrize("memory_limit_mb", [0, 10])
def test_damaged_records_must_be_prepared_again(tfds_dir, tmp_path, damage, memory_limit_mb):
    shutil.copytree(tfds_dir / "gray", tmp_path / "gray")
    file = next((tmp_path / "gray").glob("*/*train*"))
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:2000])
    elif damage == "cut between blocks":
        file.write_bytes(content[: 2**16])
    elif damage == "changed":
        content[2000:2009] = bytes(9)
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(UserError, match="prepare the data set again") as refusal:
        source = open_tfds(tmp_path, "gray", memory_limit_mb=memory_limit_mb)
        for i in range(20):
            source.image(i)
    assert "\n" not in str(refusal.value)


def test_a_link_to_itself_is_skipped_with_the_warning(tmp_path, warnings_logged):
    save(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    assert len(sources.open_source(config(tmp_path), "train")) == 1
    assert len(warnings_logged) == 1 and "loop.png" in warnings_logged[0]


@pytest.mark.parametrize(("key", "value"), [("train_split", "all"), ("test_split", "holdout")])
def test_splits_that_only_tfds_could_have_are_refused(tmp_path, key, value):
    save(tmp_path / "a.png")
    for name in ("folder", "embedded"):
        with pytest.raises(UserError, match=f"--config.data.{key}={value}: '{name}' has no such"):
            open_train(tmp_path, name=name, **{key: value})


def test_a_part_is_the_images_it_was_given_with_labels_and_paths(tmp_path):
    for n in range(4):
        save(tmp_path / "ab"[n % 2] / f"{n}.png", (10 * n, 0, 0))
    whole = open_train(tmp_path)
    part = Subset(whole, np.array([3, 0]))
    assert len(part) == 2 and part.class_names == ("a", "b") and part.image_shape == (4, 6, 3)
    assert [int(part.image(i)[0, 0, 0]) for i in range(2)] == [30, 0]
    assert part.labels.tolist() == [1, 0]
    assert [path.name for path in part.paths] == ["3.png", "0.png"]


def test_tfds_sets_that_are_prepared_are_told_from_those_that_are_not(tfds_dir):
    assert is_prepared("photos", str(tfds_dir)) and is_prepared("photos:2.1.0", str(tfds_dir))
    assert not is_prepared("cifar10", str(tfds_dir))
    assert not is_prepared("photos", str(tfds_dir / "nowhere"))
