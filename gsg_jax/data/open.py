"""Sources of images by name: the embedded set, own folders, Hugging Face and TFDS."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gsg_jax.console import UserError
from gsg_jax.data.folder import open_folder
from gsg_jax.data.huggingface import PREFIX, open_huggingface
from gsg_jax.data.source import ArraySource, Source, first_image
from gsg_jax.data.tfds import open_tfds

__all__ = ["ArraySource", "Source", "open_source"]

EMBEDDED_FILE = Path(__file__).parent / "embedded" / "fashion_mnist_10k.npz"
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def open_source(data: ConfigDict, split: str) -> Source | None:
    """Opens the training or test set that a config names.

    Images of one shape that fit into data.memory_limit_mb are decoded once, here; others are
    decoded each time they are read.

    Args:
      data: config group with name (of SOURCES, "hf:PATH" or a TFDS name), dir, train_split and
        test_split (TFDS splits; test_split '' for no test set), memory_limit_mb (2**20 bytes) and
        follow_links.
      split: "train" or "test".

    Returns:
      The source, or None for "test" if there is no test set.

    Raises:
      UserError: if it cannot be opened; the message says what to do.
      ValueError: if split is neither.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}: it must be 'train' or 'test'")
    if split == "test" and not data.test_split:
        return None
    if data.name in SOURCES:
        return _checked(data.name, split, SOURCES[data.name](data, split))
    split_name = data.train_split if split == "train" else data.test_split
    if data.name.startswith(PREFIX):
        return open_huggingface(data, split_name)
    return open_tfds(data.name, data.dir, split_name, data.memory_limit_mb)


def _checked(name: str, split: str, source: Source | None) -> Source | None:
    """The source unchanged; raises UserError if it is unusable."""
    if source is None and split == "test":
        return None
    if source is None or not len(source):
        raise UserError(f"--config.data.name={name}: has no images to train on: it needs some")
    image = first_image(source)
    if getattr(image, "dtype", None) != np.uint8 or np.ndim(image) != 3:
        kind = f"{getattr(image, 'dtype', type(image).__name__)} {np.shape(image)}"
        raise UserError(
            f"--config.data.name={name}: image(0) is {kind}: it must be uint8 [H, W, C]"
        )
    # Other sources may have to read every record for their labels.
    if isinstance(source, ArraySource) and source.labels is not None:
        _check_labels(name, np.asarray(source.labels), len(source), len(source.class_names))
    return source


def _check_labels(name: str, labels: np.ndarray, num_images: int, num_classes: int) -> None:
    """Raises UserError unless there is one class, or -1, for each image."""
    if labels.shape != (num_images,) or labels.dtype.kind not in "iub":
        raise UserError(
            f"--config.data.name={name}: its labels are {labels.dtype} {labels.shape}: they must "
            f"be integers [{num_images}], or None"
        )
    if num_classes and not -1 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"--config.data.name={name}: its labels go from {labels.min()} to {labels.max()}: they "
            f"must be numbers of its {num_classes} class_names from 0, or -1 if unknown"
        )


def _open_embedded(data: ConfigDict, split: str) -> Source:
    _check_split_names(data)
    if data.dir:
        raise UserError(
            f"--config.data.dir={data.dir}: the embedded images have no folder: take the recipe "
            "folder (METHOD:folder), or set --config.data.name=folder"
        )
    with np.load(EMBEDDED_FILE, allow_pickle=False) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return ArraySource("embedded", images, labels, FASHION_MNIST_CLASSES)


def _open_folder(data: ConfigDict, split: str) -> Source | None:
    _check_split_names(data)
    return open_folder(data.dir, split, data.memory_limit_mb, data.follow_links)


# Each function opens `config.data` as a source for "train" or "test".
SOURCES: dict[str, Callable[[ConfigDict, str], Source | None]] = {
    "embedded": _open_embedded,
    "folder": _open_folder,
}


def _check_split_names(data: ConfigDict) -> None:
    """Raises UserError if the config names splits that only a TFDS set could have."""
    known = {"train_split": ("train",), "test_split": ("test", "val", "validation", "")}
    for key, names in known.items():
        if data[key] not in names:
            raise UserError(
                f"--config.data.{key}={data[key]}: {data.name!r} has no such split, only "
                f"{names[0]!r}: set --config.data.{key}={names[0]}"
            )
