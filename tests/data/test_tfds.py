"""TFDS sets: what is read, and what is refused."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.data import open as sources
from gsg_jax.data.source import BrokenImage, Subset
from gsg_jax.run.identity import IDENTITY, check_identity, identity
from tests.data.test_decode import encode
from tests.data.test_sources import opened


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A set of photographs with labels and one of gray images without, as official ones are."""
    import tensorflow_datasets as tfds

    class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION, shape, name = tfds.core.Version("2.1.0"), (None, None, 3), "photos"

        def _info(self):
            features = {"image": tfds.features.Image(shape=self.shape), "id": tfds.features.Text()}
            if self.name == "photos":
                features["label"] = tfds.features.ClassLabel(names=["cat", "dog"])
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

        def _generate_examples(self, num_examples):
            for i in range(num_examples):
                gray, photo = Image.new("L", (8, 6), i), Image.new("RGB", (8 + i, 6), (i, 0, 0))
                if self.name == "photos":
                    yield i, {"image": io.BytesIO(encode(photo)), "id": str(i), "label": i % 2}
                else:
                    yield i, {"image": io.BytesIO(encode(gray)), "id": str(i)}

    class Gray(Photos, skip_registration=True):
        shape, name = (6, 8, 1), "gray"

    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Photos, Gray):
        builder(data_dir=folder).download_and_prepare(file_format="array_record")
    return folder


def test_tfds_photographs_of_differing_sizes_are_read_one_by_one(tfds_dir):
    source = opened(tfds_dir, name="photos")
    assert not isinstance(source, sources.ArraySource)
    assert source.image_shape is None
    assert [source.image(i).shape for i in (0, 7)] == [(6, 8, 3), (6, 15, 3)]
    assert source.image(7)[0, 0].tolist() == [7, 0, 0]
    assert source.class_names == ("cat", "dog")
    assert source.labels.dtype == np.int32
    assert source.labels.tolist() == [0, 1] * 10
    copy = pickle.loads(pickle.dumps(source))  # though its files are open
    assert copy.class_names == source.class_names and copy.labels.tolist() == [0, 1] * 10
    assert [int(copy.image(i)[0, 0, 0]) for i in range(len(copy))] == list(range(20))


def test_labels_of_some_photographs_are_read_without_the_others(tfds_dir, monkeypatch):
    source, read = opened(tfds_dir, name="photos"), []
    every = source._read
    monkeypatch.setattr(source, "_read", lambda rows: read.extend(rows) or every(rows))
    part = Subset(Subset(source, np.array([3, 8, 9, 14])), np.array([2, 0]))
    assert part.labels.tolist() == [1, 1] and read == [9, 3]
    source.image(8)  # whose label is then at hand
    assert Subset(source, np.array([8, 3])).labels.tolist() == [0, 1] and read == [9, 3, 8]
    assert source.labels.tolist() == [0, 1] * 10 and len(read) == 20


def test_two_versions_of_a_set_are_told_apart_by_their_files(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "photos", tmp_path / "photos")
    here, moved = opened(tfds_dir, name="photos"), opened(tmp_path, name="photos")
    part = opened(tmp_path, name="photos", train_split="train[:50%]")
    known = identity({"train": here, "part": part}, "")
    assert set(known["train"]) == {"count", "classes", "files"} == set(known["part"])
    assert identity({"train": moved, "part": part}, "") == known
    with next(tmp_path.glob("photos/*/photos-train*")).open("ab") as file:
        file.write(b"more")
    (tmp_path / IDENTITY).write_text(json.dumps(known))
    now = identity({"train": moved, "part": part}, "")
    with pytest.raises(
        UserError, match=r": part.files \(\w+ there, \w+ here\); train.files .*: bring"
    ):
        check_identity(tmp_path, now, may_differ=False)


def test_tfds_gray_images_keep_one_channel_and_are_held_if_they_fit(tfds_dir):
    held = opened(tfds_dir, name="gray")
    assert isinstance(held, sources.ArraySource)
    assert held.images.shape == (20, 6, 8, 1)
    assert held.images[:, 0, 0, 0].tolist() == list(range(20))
    assert held.labels is None
    read = opened(tfds_dir, name="gray", memory_limit_mb=0)
    assert not isinstance(read, sources.ArraySource)
    assert read.image_shape == (6, 8, 1)
    np.testing.assert_array_equal([read.image(i) for i in range(20)], held.images)


def test_an_image_of_any_name_is_found_and_turned_as_its_camera_says(tmp_path):
    import tensorflow_datasets as tfds

    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encode(Image.new("RGB", (8, 6), (9, 0, 0)), "JPEG", exif=exif)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    photos = [photo, encode(Image.fromarray(noise), "PNG")[:900], photo]
    held = [encode(Image.fromarray(noise[:8, :8]), "PNG"), b"broken"] + 7 * [
        encode(Image.fromarray(noise[:8, :8]), "PNG")
    ]

    class Turned(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION, name, shape, files = tfds.core.Version("1.0.0"), "turned", (None, None, 3), photos

        def _info(self):
            features = {"photo": tfds.features.Image(shape=self.shape), "id": tfds.features.Text()}
            features["label"] = tfds.features.ClassLabel(num_classes=9)
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, file in enumerate(self.files):
                yield i, {"photo": io.BytesIO(file), "id": str(i), "label": i}

    class Held(Turned, skip_registration=True):
        name, shape, files = "held", (8, 8, 3), held

    for builder in (Turned, Held):
        builder(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    source = opened(tmp_path, name="turned")
    assert source.image(0).shape == (8, 6, 3)
    with pytest.raises(BrokenImage, match="image 1 of turned"):
        source.image(1)
    source = opened(tmp_path, name="held")
    assert source.labels.tolist() == [0, *range(2, 9)] and source.images.shape == (8, 8, 8, 3)
    assert len(source.left_out) == 1 and "image 1 of held" in source.left_out[0]


def test_tfds_sub_splits_configs_and_versions_are_understood(tfds_dir):
    source = opened(tfds_dir, name="photos:2.1.0", train_split="train[50%:70%]")
    assert [int(source.image(i)[0, 0, 0]) for i in range(len(source))] == [10, 11, 12, 13]
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert len(opened(tfds_dir, "test", name="gray", test_split="test[:2]")) == 2
    assert opened(tfds_dir, "test", name="gray", test_split="") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "photo"}, "Prepared there: photos"),
        ({"name": "grey"}, "{tfds_dir}"),
        ({"name": "imagenet2012"}, "gsg-jax prepare imagenet2012 --data_dir="),
        ({"name": "photos:9.9.9"}, "photos:9.9.9"),
        ({"dir": "~nosuchuser/sets", "name": "photos"}, "--config.data.dir=~nosuchuser/sets"),
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
        opened(changes.pop("dir", tfds_dir), **changes)
    assert message.format(tfds_dir=tfds_dir) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_set_in_tfrecord_must_be_prepared_again(tfds_dir, tmp_path):
    # Writing TFRecord needs TensorFlow, so only the description says so.
    shutil.copytree(tfds_dir / "photos", tmp_path / "photos")
    description = tmp_path / "photos" / "2.1.0" / "dataset_info.json"
    info = json.loads(description.read_text())
    description.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="array_record") as refusal:
        opened(tmp_path, name="photos")
    assert "tfrecord" in str(refusal.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:2000],
        lambda content: content[: 2**16],  # between blocks
        lambda content: content[:2000] + bytes(9) + content[2009:],
        lambda content: None,
    ],
    ids=["cut", "cut between blocks", "changed", "gone"],
)
@pytest.mark.parametrize("memory_limit_mb", [0, 10])
def test_damaged_records_must_be_prepared_again(tfds_dir, tmp_path, damage, memory_limit_mb):
    shutil.copytree(tfds_dir / "gray", tmp_path / "gray")
    file = next((tmp_path / "gray").glob("*/*train*"))
    damaged = damage(file.read_bytes())
    file.unlink() if damaged is None else file.write_bytes(damaged)
    with pytest.raises(UserError, match="prepare the data set again") as refusal:
        source = opened(tmp_path, name="gray", memory_limit_mb=memory_limit_mb)
        for i in range(20):
            source.image(i)
    assert "\n" not in str(refusal.value)


def test_a_set_that_names_code_of_its_own_is_refused_and_none_is_run(
    tfds_dir, tmp_path, monkeypatch
):
    folder = shutil.copytree(tfds_dir, tmp_path / "tfds")
    (tmp_path / "planted.py").write_text("raise SystemExit('planted code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for path in folder.rglob("features.json"):
        text = path.read_text()
        path.write_text(text.replace("tensorflow_datasets.core.features.image_feature", "planted"))
    with pytest.raises(UserError, match="names the code 'planted.Image', never run"):
        opened(folder, name="photos")
    assert opened(tfds_dir, name="photos").image(0).shape == (6, 8, 3)
