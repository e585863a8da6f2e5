"""Embeddings on disk: written batch by batch, resumed where an earlier call stopped."""

import hashlib
import json
import os
import pathlib
import time
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from gsg_jax.config.load import is_same
from gsg_jax.console import UserError, counting, say
from gsg_jax.data.source import MAX_CLASSES, Source, Subset
from gsg_jax.devices import hosts
from gsg_jax.devices.mesh import wait_for_hosts
from gsg_jax.evaluation.features import Embed, embed_batches
from gsg_jax.run.files import read_object, replacing, write_atomically

SAVE_EVERY_SECONDS = 5.0
READ_ERRORS = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)


class LabelledFeatures(NamedTuple):
    """Embeddings of a split, with the labels and names of their images.

    Attributes:
      h: embeddings, float32 [N, F].
      label: int32 [N], -1 if unknown.
      id: [N], an image's path if it is a file, else its index in the split.
    """

    h: np.ndarray
    label: np.ndarray
    id: np.ndarray


def write_features(
    path: pathlib.Path,
    embed: Embed,
    source: Source,
    *,
    about: dict[str, Any],
    batch_size: int,
    size: int | None,
) -> LabelledFeatures:
    """Embeds a source into a file, or resumes an earlier call, and returns the file's contents.

    Rows go to PATH.partial and their number to a .json beside it. Several hosts share the folder;
    the first one writes.

    Args:
      path: the .npz file.
      embed: from backbone_embed.
      source: the images.
      about: what the embeddings depend on; a file about something else is kept.
      batch_size: images at a time.
      size: side of the centre crop, pixels; None takes images as they are.

    Raises:
      UserError: if the file, or its beginning, is about something else.
    """
    record_path, rows_path = path.with_suffix(".json"), path.with_suffix(".partial")
    labels_digest = hashlib.sha256(labels_of(source).tobytes()).hexdigest()[:16]
    about = about | {"num_images": len(source), "labels_digest": labels_digest}
    about = json.loads(json.dumps(about))  # as it is read back, with lists instead of tuples
    num_done = _rows_done(record_path, rows_path, path, about)
    if path.exists() and num_done == len(source):
        say(f"{path} is there already: {len(source):,} embeddings")
        rows_path.unlink(missing_ok=True)  # if an earlier call was killed just before it did
        return read_features(path)
    wait_for_hosts("the embeddings are looked for")
    if num_done:
        say(f"{path}: resumes after {num_done:,} of {len(source):,} embeddings")

    path.parent.mkdir(parents=True, exist_ok=True)
    is_writer, rows, saved = hosts.is_writer(), None, time.monotonic()
    batches = embed_batches(embed, source, batch_size=batch_size, size=size, first=num_done)
    with counting(f"embedding {path.stem}", len(source), num_done) as show:
        for h in batches if num_done < len(source) else ():
            if is_writer:
                if rows is None:
                    rows = _open_rows(rows_path, num_done, (len(source), h.shape[1]))
                rows[num_done : num_done + len(h)] = h
            num_done += len(h)
            show(num_done)
            is_last = num_done == len(source)
            if is_writer and (is_last or time.monotonic() - saved > SAVE_EVERY_SECONDS):
                rows.flush()
                write_atomically(record_path, json.dumps(about | {"num_done": num_done}) + "\n")
                saved = time.monotonic()
    if is_writer:
        rows = np.load(rows_path, mmap_mode="r")
        save_features(path, LabelledFeatures(rows, labels_of(source), ids_of(source)))
        rows_path.unlink()
    wait_for_hosts(str(path))
    return read_features(path)


def _open_rows(path: pathlib.Path, num_done: int, shape: tuple[int, int]) -> np.ndarray:
    """Opens the rows for writing: an earlier call's if it finished some, else new ones."""
    if num_done:
        return np.load(path, mmap_mode="r+")
    path.unlink(missing_ok=True)  # perhaps a link to elsewhere
    rows = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # or else a full disk ends the job by SIGBUS, at some row
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink()  # it has taken what room there was
            raise OSError(error.errno, error.strerror, str(path)) from error
    return rows


def read_features(path: pathlib.Path) -> LabelledFeatures:
    """Reads an .npz file of h [N, F], label [N] and perhaps id, written by any program.

    Raises:
      UserError: if there is no such file, it is damaged, or its arrays do not fit together.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}: make it with --config=features")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            h, label = arrays["h"], arrays["label"]
            names = arrays["id"] if "id" in arrays else np.arange(label.size)
    except READ_ERRORS as error:
        raise UserError(
            f"{path} cannot be read ({error}): it must be an .npz of h [N, F], label [N] and id"
        ) from error
    is_whole = h.ndim == 2 and h.size and h.dtype.kind == "f" and label.dtype.kind in "iu"
    if not is_whole or label.shape != h.shape[:1] or names.shape != h.shape[:1]:
        raise UserError(
            f"{path}: h {h.dtype} {h.shape}, label {label.dtype} {label.shape} and id "
            f"{names.shape} do not fit together: give float [N, F], int [N] and [N]"
        )
    if not -1 <= label.min() <= label.max() < MAX_CLASSES:
        raise UserError(
            f"{path}: labels from {label.min()} to {label.max()}: give the numbers of classes from "
            f"0, below {MAX_CLASSES:,}, and -1 where unknown"
        )
    return LabelledFeatures(h.astype(np.float32, copy=False), label.astype(np.int32), names)


def labels_of(source: Source) -> np.ndarray:
    """Labels of a source, int32 [N]; all -1 if it has none."""
    labels = source.labels
    return np.full(len(source), -1, np.int32) if labels is None else labels


def ids_of(source: Source) -> np.ndarray:
    """Names of the images: their paths, or their indices in the split, [N]."""
    if source.paths:
        return np.array([*map(str, source.paths)])
    indices = np.arange(len(source))
    while isinstance(source, Subset):
        indices, source = source.indices[indices], source.source
    return indices


def _rows_done(
    record_path: pathlib.Path, rows_path: pathlib.Path, path: pathlib.Path, about: dict[str, Any]
) -> int:
    """How many rows an earlier call has finished."""
    if not record_path.exists():
        if path.exists():
            raise UserError(f"{path} is not of this program: give another --workdir, or remove it")
        return 0
    record = read_object(record_path)
    num_done = record.pop("num_done", 0)
    if differing := [
        key for key in {*record, *about} if not is_same(key, record.get(key), about.get(key))
    ]:
        key = min(differing)
        raise UserError(
            f"{path.parent} holds embeddings of something else ({key} {record.get(key)} there, "
            f"{about.get(key)} here): give another --workdir, or remove {record_path}"
            + (f" and {path}" if path.exists() else "")
        )
    is_sound = isinstance(num_done, int) and 0 <= num_done <= about["num_images"]
    return num_done if is_sound and (path.exists() or _is_whole(rows_path, about)) else 0


def _is_whole(rows_path: pathlib.Path, about: dict[str, Any]) -> bool:
    """Whether the file of an earlier call has its full size."""
    if rows_path.is_symlink():
        return False
    try:
        rows = np.load(rows_path, mmap_mode="r")  # a shorter file than its header says is refused
    except READ_ERRORS:
        return False
    return rows.ndim == 2 and len(rows) == about["num_images"]


def save_features(path: pathlib.Path, features: LabelledFeatures, **more: Any) -> None:
    """Writes a file of embeddings, and more arrays beside them, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, **features._asdict(), **more)
