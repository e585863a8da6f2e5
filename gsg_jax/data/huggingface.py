"""Hugging Face `datasets`: saved sets, parquet files, folders of images, or sets of the Hub."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gsg_jax.console import UserError, given_path, say
from gsg_jax.data.decode import DECODE_ERRORS, decode, header_shape
from gsg_jax.data.source import (
    MAX_CLASSES,
    BrokenImage,
    Source,
    fits,
    in_memory,
    num_decode_threads,
    unreadable,
)

PREFIX = "hf:"  # of config.data.name
_CHUNK = 256  # images whose headers are read before two are compared


class HuggingFaceSource:
    """Images of one split, decoded to RGB each time they are read.

    Attributes:
      name: of the data set.
      labels: int32 [N], -1 if unknown; or None.
      class_names: one per label, or empty.
      image_shape: (H, W, 3) of every image, or None.
    """

    paths = ()  # many images share a file

    def __init__(
        self, name: str, images: Any, labels: np.ndarray | None, class_names: tuple[str, ...]
    ) -> None:
        """Takes a `datasets.Dataset` whose one column has encoded images."""
        self.name, self.labels, self.class_names = name, labels, class_names
        self._images, self._column = images, images.column_names[0]
        self.image_shape = self._common_shape()

    @property
    def files(self) -> list[str]:
        """The files that hold the images, by which two versions of a set are told apart."""
        first = self._images[0][self._column] or {}
        if first.get("bytes") or not first.get("path"):
            return [file["filename"] for file in self._images.cache_files]
        return [encoded["path"] for encoded in self._images[self._column] if encoded]

    def __len__(self) -> int:
        return len(self._images)

    def decoded(self, rows: Iterable[int]) -> Iterator[np.ndarray | BrokenImage]:
        """Yields images, or what is wrong with them."""
        for i in rows:
            try:
                yield self.image(i)
            except BrokenImage as broken:
                yield broken

    def image(self, i: int) -> np.ndarray:
        """Decodes image i, uint8 [H, W, 3]; raises UserError if it cannot be read or decoded."""
        return self._read(lambda encoded: decode(encoded, exif=True), i)

    def _common_shape(self) -> tuple[int, int, int] | None:
        """The shape of all images by their headers; None as soon as two differ."""
        shapes = set()
        with ThreadPoolExecutor(num_decode_threads()) as pool:
            for start in range(0, len(self), _CHUNK):
                rows = range(start, min(start + _CHUNK, len(self)))
                shapes |= set(pool.map(self._shape, rows)) - {None}
                if len(shapes) > 1:
                    return None
        if not shapes:
            raise UserError(f"{self.name} has no image that can be decoded")
        return shapes.pop()

    def _shape(self, i: int) -> tuple[int, int, int] | None:
        with contextlib.suppress(BrokenImage):
            return self._read(_header_shape, i)

    def _read(self, read: Callable[[bytes | str], Any], i: int) -> Any:
        encoded = self._images[int(i)][self._column] or {}
        try:
            # An image without content and path is b"", which cannot be decoded.
            return read(encoded.get("bytes") or encoded.get("path") or b"")
        except DECODE_ERRORS as error:
            text = f"cannot decode image {i} of {self.name} ({error})"
            raise unreadable(error, text) from error


def _header_shape(encoded: bytes | str) -> tuple[int, int, int]:
    return header_shape(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def open_huggingface(data: ConfigDict, split: str) -> Source:
    """Opens one split of a Hugging Face `datasets` set, read at random from Arrow files.

    The images are the column of type Image. Labels are the column of type ClassLabel, or
    whole numbers in a column "label". A path on this machine is opened without any request; a name
    of the Hub, such as hf:user/set, is downloaded by `datasets` into its cache. A set's code is
    never run.

    Args:
      data: `config.data`; its name is "hf:" and a folder of save_to_disk, a folder of images or of
        parquet files, one parquet file, or a name of the Hub.
      split: name of the split.

    Raises:
      UserError: if `datasets` or the set is missing, or it has no such split, no images, or several
        columns of them.
    """
    name = data.name.removeprefix(PREFIX)
    if data.dir:
        raise UserError(
            f"--config.data.dir={data.dir}: {data.name} has its path in data.name; leave dir empty"
        )
    splits = _load(name)
    if split not in splits:
        raise UserError(
            f"{data.name} has no split {split!r}: set --config.data.train_split and "
            f"--config.data.test_split to one of {', '.join(splits)} (test_split='' for none)"
        )
    rows = splits[split]
    if not len(rows):
        raise UserError(f"split {split!r} of {data.name} holds no images: choose another")
    import datasets

    kind = {column: type(feature) for column, feature in rows.features.items()}
    images = [column for column in kind if kind[column] is datasets.Image]
    if len(images) != 1:
        found = ", ".join(f"{column} ({kind[column].__name__})" for column in kind)
        raise UserError(
            f"{data.name} has {len(images)} columns of images: it needs one of the type "
            f"datasets.Image; it has {found}"
        )
    labels, class_names = _labels(data, splits, rows)
    encoded = rows.select_columns(images).cast_column(images[0], datasets.Image(decode=False))
    source = HuggingFaceSource(data.name, encoded.with_format(None), labels, class_names)
    if source.image_shape and fits(len(source), source.image_shape, data.memory_limit_mb):
        return in_memory(source, source.decoded)
    return source


def _load(name: str) -> dict[str, Any]:
    """The splits of a set, by name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"--config.data.name={PREFIX}{name}: needs datasets: pip install 'gsg_jax[hf]'"
        ) from error
    path = given_path(f"--config.data.name={PREFIX}DIR, DIR", name)
    is_here = bool(name) and path.exists()
    if not is_here and (not name or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise UserError(
            f"--config.data.name={PREFIX}{name}: there is no such path: give a set's path, such as "
            f"{PREFIX}DIR, or a name of the Hub, such as {PREFIX}USER/SET"
        )
    if not is_here:
        say(f"{name} is no path here: it is asked for at the Hugging Face Hub")
    datasets.disable_progress_bars()
    was_offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = was_offline or is_here
    try:
        found = _read(path) if is_here else datasets.load_dataset(name)
    except Exception as error:  # whatever `datasets`, pyarrow and the network raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot open {PREFIX}{name} ({reason}): give a folder of Dataset.save_to_disk, a "
            "folder of images or of parquet files, or one parquet file"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    return dict(found) if isinstance(found, dict) else {"train": found}


def _read(path: Path) -> Any:
    import datasets

    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return datasets.load_from_disk(str(path))
    if path.is_file():
        return datasets.load_dataset("parquet", data_files={"train": str(path.resolve())})
    return datasets.load_dataset(str(path.resolve()))


def _is_integer(kind: Any) -> bool:
    """Whether a column holds one integer an image, and not a list of them."""
    import datasets

    return isinstance(kind, datasets.Value) and kind.dtype.startswith(("int", "uint"))


def _labels(
    data: ConfigDict, splits: dict[str, Any], rows: Any
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels of a split and the names of their classes; (None, ()) if there are none."""
    import datasets

    of_classes = [c for c, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    column = "label" if "label" in of_classes or not of_classes else of_classes[0]
    if len(of_classes) > 1:
        say(f"{data.name} has the labels {', '.join(of_classes)}: {column} are taken")
    if column not in rows.features:
        return None, ()
    if of_classes:
        names = tuple(rows.features[column].names)
    elif _is_integer(rows.features[column]):
        # Classes of all splits, so that a number means the same in each.
        labelled = (part[column] for part in splits.values() if column in part.features)
        known = (x for labels in labelled for x in labels if x is not None)
        largest = int(max(known, default=-1))
        if largest >= MAX_CLASSES:
            raise UserError(
                f"{data.name}: the labels in {column!r} go up to {largest}: they must be below "
                f"{MAX_CLASSES:,}; if they are none, remove or rename the column"
            )
        names = tuple(str(number) for number in range(largest + 1))
    else:
        return None, ()
    labels = np.array([-1 if label is None else label for label in rows[column]], np.int64)
    if len(labels) and not -1 <= labels.min() <= labels.max() < len(names):
        raise UserError(
            f"{data.name}: the labels in {column!r} go from {labels.min()} to {labels.max()}: they "
            f"must be from 0 to {len(names) - 1}, or -1 if unknown"
        )
    return labels.astype(np.int32), names
