"""The set inside the package."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from gsg_jax.console import UserError
from gsg_jax.data import open as sources
from tests.small import data_config

FOLDER = Path(sources.__file__).parent / "embedded"
CONFIG = data_config("embedded", "")


@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("test", 200)])
def test_split_is_class_balanced_uint8_of_28_by_28(split, per_class):
    source = sources.open_source(CONFIG, split)
    assert source.images.shape == (10 * per_class, 28, 28, 1)
    assert source.images.dtype == np.uint8
    assert source.labels.dtype == np.int32
    assert np.bincount(source.labels).tolist() == [per_class] * 10
    assert len(source.class_names) == 10
    assert source.image_shape == (28, 28, 1)
    np.testing.assert_array_equal(source.image(3), source.images[3])


def test_a_folder_is_refused_instead_of_being_left_unread():
    with pytest.raises(UserError, match="--config.data.dir=photos: the embedded images have no"):
        sources.open_source(data_config("embedded", "photos"), "train")


def test_labels_belong_to_the_images():
    # A nearest class mean is right about 0.68 of the time, 0.1 if labels were mixed up.
    train, test = (sources.open_source(CONFIG, split) for split in ("train", "test"))
    flat = train.images.reshape(len(train), -1).astype(np.float32)
    means = np.stack([flat[train.labels == label].mean(0) for label in range(10)])
    queries = test.images.reshape(len(test), -1).astype(np.float32)
    distances = (means**2).sum(1) - 2 * queries @ means.T
    assert np.mean(distances.argmin(1) == test.labels) > 0.6


def test_readme_states_the_hash_of_the_file_and_the_licence_is_there():
    digest = hashlib.sha256((FOLDER / "fashion_mnist_10k.npz").read_bytes()).hexdigest()
    assert digest in (FOLDER / "README.md").read_text()
    assert "2017 Zalando SE" in (FOLDER / "LICENSE.fashion-mnist").read_text()
