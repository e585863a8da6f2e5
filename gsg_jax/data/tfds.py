"""TFDS data sets, read from ArrayRecord without TensorFlow."""

import contextlib
import difflib
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gsg_jax.console import UserError, given_path
from gsg_jax.data.decode import DECODE_ERRORS, decode
from gsg_jax.data.source import BrokenImage, Source, fits, in_memory

_CHUNK = 256  # records per read, for their labels


class RecordSource:
    """Images of a TFDS split, decoded each time they are read.

    Args:
      name: of the data set.
      records: TFDS data source whose elements hold an image (encoded, or uint8 [H, W, C]) and, if
        there are class names, what `label_of` reads.
      image_shape: (H, W, C) of every image, or None.
      class_names: one per label; empty for a set without labels.
      channels: 3 for RGB, 1 for grayscale.
      image_key: the key of an element's image.
      files: the files of the records, which tell two versions of a set apart.
      label_of: returns a record's label, or its row of labels (`multi_label_row`).
    """

    paths = ()  # many images share a file

    def __init__(
        self,
        name: str,
        records: Any,
        *,
        image_shape: tuple[int, int, int] | None,
        class_names: tuple[str, ...],
        channels: int,
        image_key: str = "image",
        files: Sequence[str] = (),
        label_of: Callable[[dict[str, Any]], int | np.ndarray] = operator.itemgetter("label"),
    ) -> None:
        self.name = name
        self.class_names = class_names
        self.image_shape = image_shape
        self._records = records
        self._channels = channels
        self._image_key = image_key
        self.files = files
        # Images of one oblong shape that is known beforehand keep it.
        self._is_turned = image_shape is None or image_shape[0] == image_shape[1]
        self._label_of = label_of
        self._labels: list[int | np.ndarray | None] = [None] * len(records)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process reads its labels again.
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._labels = [None] * len(self._records)
        self._lock = threading.Lock()

    @property
    def labels(self) -> np.ndarray | None:
        """Labels, int32 [N], or [N, C] if an image has several.

        Records whose image has not been read yet are read for their label.
        """
        return self.labels_at(range(len(self)))

    def labels_at(self, rows: Iterable[int]) -> np.ndarray | None:
        """Labels of some images, as `labels` has them."""
        if not self.class_names:
            return None
        rows = [int(i) for i in rows]
        with self._lock:
            unread = [i for i in rows if self._labels[i] is None]
            for start in range(0, len(unread), _CHUNK):
                chunk = unread[start : start + _CHUNK]
                for i, record in zip(chunk, self._read(chunk), strict=True):
                    self._labels[i] = self._label_of(record)
        return np.array([self._labels[i] for i in rows], np.int32)

    def __len__(self) -> int:
        return len(self._records)

    def image(self, i: int) -> np.ndarray:
        """Decodes image i, uint8 [H, W, C]; raises UserError if it cannot be read or decoded."""
        return self._decode(int(i), self._read([int(i)])[0])

    def decoded(self, rows: Sequence[int]) -> Iterator[np.ndarray | BrokenImage]:
        """Yields images, or what is wrong with them; the records are read at once."""
        for i, record in zip(rows, self._read(list(rows)), strict=True):
            try:
                yield self._decode(i, record)
            except BrokenImage as broken:
                yield broken

    def _read(self, positions: list[int]) -> list[dict[str, Any]]:
        try:
            if len(positions) == 1:
                # __getitems__ starts threads.
                records = [self._records[positions[0]]]
            else:
                records = self._records.__getitems__(positions)
        except RuntimeError as error:
            raise _damaged(self.name, str(error)) from error
        # ArrayRecord gives no error if a file ends between two of its blocks.
        if any(record[self._image_key] is None for record in records):
            raise _damaged(self.name, f"a record of {positions[0]} to {positions[-1]} is empty")
        return records

    def _decode(self, i: int, record: dict[str, Any]) -> np.ndarray:
        if self.class_names:
            # Kept now, since this may spare a pass over all records for the labels.
            self._labels[i] = self._label_of(record)
        encoded = record[self._image_key]
        if isinstance(encoded, np.ndarray):
            return encoded
        try:
            return decode(encoded, channels=self._channels, exif=self._is_turned)
        except DECODE_ERRORS as error:
            raise BrokenImage(f"cannot decode image {i} of {self.name} ({error})") from error


def open_tfds(
    name: str, data_dir: str, split: str, memory_limit_mb: float, *, multi_label: bool = False
) -> Source:
    """Opens one split of a TFDS data set that was prepared as ArrayRecord.

    Args:
      name: TFDS name, optionally with a config (`name/config`) or version (`name:1.0.0`).
      data_dir: TFDS folder; '' for TFDS's default (TFDS_DATA_DIR, else ~/tensorflow_datasets).
      split: TFDS split; may be a sub-split such as "train[:10%]".
      memory_limit_mb: images of one shape are held in memory up to this, in units of 2**20 bytes.
      multi_label: whether the labels are the feature "labels", of which an image has several, as
        in voc: [N, C] of 1 (shown), 0 (not shown), -1 (difficult to tell, not counted).

    Returns:
      The source, with one channel if the set's images have one, else three.

    Raises:
      UserError: if the set is missing, is not in ArrayRecord, or has no such split or images.
    """
    # Imported here: other sources need not pay its half a second.
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    features = dict(getattr(builder.info.features, "items", dict)())
    image_key = _image_key(name, features)
    feature = features[image_key]
    class_names, label_of = (), {}
    if multi_label:
        label = getattr(features.get("labels"), "feature", None)
        if not isinstance(label, tfds.features.ClassLabel):
            raise UserError(f"{name!r} has no feature 'labels' of classes: choose a set that has")
        class_names = tuple(label.names)
        label_of = {"label_of": partial(multi_label_row, len(class_names))}
    elif isinstance(features.get("label"), tfds.features.ClassLabel):
        class_names = tuple(features["label"].names)
    # TFDS's own decoder warns without OpenCV and keeps alpha; ours treats files as in folders.
    encoded = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    records = _records(builder, name, split, skip_decoding=encoded)
    channels = 1 if feature.shape[-1] == 1 else 3
    shape = (*feature.shape[:2], channels) if image_key in encoded else tuple(feature.shape)
    shape = None if None in shape else shape
    source = RecordSource(
        name,
        records,
        image_shape=shape,
        class_names=class_names,
        channels=channels,
        image_key=image_key,
        files=[str(path) for path in builder.info.splits[split].filepaths],
        **label_of,
    )
    if shape is None or not fits(len(source), shape, memory_limit_mb):
        return source
    return in_memory(source, source.decoded)


def _image_key(name: str, features: dict[str, Any]) -> str:
    """The feature of 8-bit images: "image", or else the only one."""
    found = [
        key
        for key, feature in features.items()
        if len(getattr(feature, "shape", None) or ()) == 3 and feature.np_dtype == np.uint8
    ]
    if "image" in found:
        return "image"
    if len(found) != 1:
        raise UserError(
            f"{name!r} has {len(found)} features of 8-bit images and none called 'image': choose a "
            f"set with one; it has {', '.join(features) or 'none'}"
        )
    return found[0]


def is_prepared(name: str, data_dir: str) -> bool:
    """Returns whether a TFDS data set, named as in open_tfds, is prepared on this machine."""
    try:
        _builder(name, data_dir)
    except UserError:
        return False
    return True


def prepared_names(data_dir: str) -> list[str]:
    """Returns name or name/config of each TFDS set that is prepared on this machine, sorted."""
    from tensorflow_datasets.core.utils import file_utils

    found = (
        path.relative_to(folder).parts[:-2]
        for folder in file_utils.list_data_dirs(_expanded(data_dir))
        for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json")
        for path in Path(folder).glob(pattern)
    )
    return sorted({"/".join(parts) for parts in found})


def multi_label_row(num_classes: int, record: dict[str, Any]) -> np.ndarray:
    """Returns a record's labels, int32 [C]: 1, 0, or -1 for a class that is difficult to tell.

    Args:
      num_classes: C.
      record: holds the class numbers "labels" and, if some are difficult, "labels_no_difficult".
    """
    row = np.zeros(num_classes, np.int32)
    sure = record.get("labels_no_difficult")
    row[record["labels"]] = 1 if sure is None else -1
    row[[] if sure is None else sure] = 1
    return row


def _records(builder: Any, name: str, split: str, *, skip_decoding: list[str]) -> Any:
    """Returns the split's records, leaving the features in skip_decoding encoded."""
    import tensorflow_datasets as tfds

    file_format = tfds.core.FileFormat.ARRAY_RECORD
    if file_format not in builder.info.available_file_formats():
        raise UserError(
            f"{name!r} in {builder.data_dir} is prepared as {builder.info.file_format.value}, "
            "which needs TensorFlow to be read: prepare it again as array_record "
            f"(gsg-jax prepare {name} --data_dir=OTHER_DIR)"
        )
    try:
        size = builder.info.splits[split].num_examples
    except ValueError as error:
        raise UserError(
            f"{name!r} has no split {split!r}: it has {', '.join(builder.info.splits)}, and "
            "sub-splits such as train[:10%]"
        ) from error
    if not size:
        raise UserError(f"split {split!r} of {name!r} holds no images: choose a larger one")
    decoders = {key: tfds.decode.SkipDecoding() for key in skip_decoding}
    try:
        return builder.as_data_source(split, decoders=decoders, file_format=file_format)
    except RuntimeError as error:
        raise _damaged(name, str(error)) from error


def _damaged(name: str, reason: str) -> UserError:
    """Returns the error for files that are cut short, changed or missing."""
    reason = reason.splitlines()[0]
    return UserError(f"cannot read {name!r} ({reason}): remove it and prepare the data set again")


def _builder(name: str, data_dir: str) -> Any:
    """Finds the prepared set on disk, without its generating code."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import file_utils

    try:
        with _only_known_features(tfds.features.FeatureConnector):
            return read_only_builder.builder_from_files(name, data_dir=_expanded(data_dir))
    except tfds.core.DatasetNotFoundError as error:
        looked = [str(path) for path in file_utils.list_data_dirs(_expanded(data_dir))]
        close = difflib.get_close_matches(name, prepared_names(data_dir), n=3)
        hint = f" Prepared there: {', '.join(close)}." if close else ""
        raise UserError(
            f"no data set {name!r} in {', '.join(looked)}.{hint} Prepare it with "
            f"`gsg-jax prepare {name} --data_dir={looked[0]}` "
            "(needs pip install 'gsg_jax[prepare]')"
        ) from error
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot open the data set {name!r} ({reason}): write it as name, name/config or "
            "name:1.0.0, and give data.dir if it lies in several folders"
        ) from error


@contextlib.contextmanager
def _only_known_features(connector: Any) -> Iterator[None]:
    """Keeps TFDS from importing whatever module the features.json of a set names."""
    find, before = connector.cls_from_name, vars(connector)["cls_from_name"]

    def find_known(class_name: str) -> Any:
        if not class_name.startswith("tensorflow_datasets."):
            raise ValueError(f"its features.json names the code {ascii(class_name)}, never run")
        return find(class_name)

    connector.cls_from_name = staticmethod(find_known)
    try:
        yield
    finally:
        connector.cls_from_name = before


def _expanded(data_dir: str) -> str | None:
    """Expands ~; returns None for TFDS's default folder."""
    is_home = data_dir.startswith("~")
    return str(given_path("--config.data.dir", data_dir)) if is_home else data_dir or None
