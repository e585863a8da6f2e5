"""The set inside the package."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from gsg_jax.data import open as sources
from gsg_jax.data import prepare

FOLDER = Path(sources.__file__).parent / "embedded"


def config(**changes):
    data = {"name": "embedded", "dir": "", "train_split": "train", "test_split": "test"}
    return ConfigDict({**data, "memory_limit_mb": 1000, **changes})


@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("test", 200)])
def test_split_is_class_balanced_uint8_of_28_by_28(split, per_class):
    source = sources.open_source(config(), split)
    assert source.images.shape == (10 * per_class, 28, 28, 1)
    assert source.images.dtype == np.uint8
    assert source.labels.dtype == np.int32
    assert np.bincount(source.labels).tolist() == [per_class] * 10
    assert len(source.class_names) == 10
    assert source.image_shape == (28, 28, 1)
    np.testing.assert_array_equal(source.image(3), source.images[3])


def test_classes_are_mixed_in_the_order_of_the_set():
    labels = sources.open_source(config(), "train").labels
    assert len(set(labels[:100].tolist())) == 10


def test_no_training_image_is_in_the_test_set():
    train = {image.tobytes() for image in sources.open_source(config(), "train").images}
    test = sources.open_source(config(), "test").images
    assert sum(image.tobytes() in train for image in test) == 0


def test_labels_belong_to_the_images():
    # A nearest class mean is right about 0.68 of the time, 0.1 if labels were mixed up.
    train, test = (sources.open_source(config(), split) for split in ("train", "test"))
    flat = train.images.reshape(len(train), -1).astype(np.float32)
    means = np.stack([flat[train.labels == label].mean(0) for label in range(10)])
    queries = test.images.reshape(len(test), -1).astype(np.float32)
    distances = (means**2).sum(1) - 2 * queries @ means.T
    assert np.mean(distances.argmin(1) == test.labels) > 0.6


def test_no_test_split_means_no_test_set():
    assert sources.open_source(config(test_split=""), "test") is None


def test_readme_states_the_hash_of_the_file_and_the_licence_is_there():
    digest = hashlib.sha256((FOLDER / "fashion_mnist_10k.npz").read_bytes()).hexdigest()
    assert digest in (FOLDER / "README.md").read_text()
    assert "2017 Zalando SE" in (FOLDER / "LICENSE.fashion-mnist").read_text()


def test_the_file_is_what_prepare_makes_from_the_idx_files():
    idx_dir = Path("/usr/share/datasets/fashion-mnist")
    if not idx_dir.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    with np.load(FOLDER / "fashion_mnist_10k.npz", allow_pickle=False) as arrays:
        for split, per_class in (("train", 1000), ("test", 200)):
            images, labels = prepare.read_idx_split(idx_dir, split)
            subset = prepare.class_balanced_subset(
                labels, per_class=per_class, seed=prepare.EMBEDDED_SEED
            )
            np.testing.assert_array_equal(arrays[f"{split}_images"][..., 0], images[subset])
            np.testing.assert_array_equal(arrays[f"{split}_labels"], labels[subset])


def test_a_split_of_another_name_is_refused():
    with pytest.raises(ValueError, match="'valid'"):
        sources.open_source(config(), "valid")
