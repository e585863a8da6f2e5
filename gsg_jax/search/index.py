"""The index of a set of images: their embeddings on disk, kept while the images stay the same.

A row is matched to an image by path, size and time of last change. One rule therefore covers
photographs that were added, changed or removed and a process that was stopped: images with a row
keep it, the others are embedded.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gsg_jax.console import UserError, counting, say
from gsg_jax.data.decode import extensions, reason
from gsg_jax.evaluation.feature_files import (
    READ_ERRORS,
    LabelledFeatures,
    read_features,
    save_features,
)
from gsg_jax.evaluation.features import Embed, embed_batches
from gsg_jax.evaluation.image_encoder import BATCH_SIZE, Preparation
from gsg_jax.run.files import write_atomically
from gsg_jax.run.lock import writing
from gsg_jax.search.images import Listing

SAVE_EVERY_SECONDS = 30.0
SAVING_SHARE = 0.05  # of the time at most, if saving takes long
VERSION = 1  # of the file
_NAMED_FILES = 5


class Prepared:
    """Some images of a listing, prepared for a network; satisfies Source.

    Attributes:
      unreadable: {index into `rows` of a file that could not be decoded: why}; they become black.
      broken: the indices of those that were read, so only another file would help.
    """

    labels, class_names, paths = None, (), ()

    def __init__(self, images: Listing, rows: np.ndarray, prepare: Preparation):
        """Takes the images of the given rows, in their order."""
        self.name = images.title
        self.image_shape = (prepare.size, prepare.size, prepare.channels)
        self.unreadable: dict[int, str] = {}
        self.broken: set[int] = set()
        self._images, self._rows, self._prepare = images, rows, prepare

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, i: int) -> np.ndarray:
        """Image i as the network takes it; raises UserError if it is damaged and not a file."""
        try:
            pixels = self._images.read(self._images.id[self._rows[i]], self._prepare.channels)
        except UserError as error:
            if self._images.root is None:
                raise
            self.unreadable[i] = reason(error.__cause__ or error)
            is_too_large = isinstance(error.__cause__, MemoryError)
            if getattr(error.__cause__, "errno", None) is None and not is_too_large:
                self.broken.add(i)
            return np.zeros(self.image_shape, np.uint8)
        return self._prepare(pixels)


class Index(NamedTuple):
    """Embeddings of images.

    Attributes:
      h: float32 [N, F].
      id: [N], as in the listing and in its order; files that cannot be decoded are left out.
      stamp: int64 [N, 2], likewise.
      num_embedded: how many of them were embedded by this call.
      broken: {(name, size, time) of a file that could not be decoded: why}; none is tried again.
    """

    h: np.ndarray
    id: np.ndarray
    stamp: np.ndarray
    num_embedded: int = 0
    broken: Mapping[tuple[str, int, int], str] = MappingProxyType({})


def update_index(
    path: Path, images: Listing, embed: Embed, prepare: Preparation, about: dict[str, Any]
) -> Index:
    """Updates the index of some images: embeds those that it lacks and drops those that are gone.

    Args:
      path: the .npz file, also a features file, with h, label (-1) and id.
      images: the images that it should hold.
      embed: from backbone_embed.
      prepare: turns an image into what `embed` takes.
      about: which encoder makes the embeddings; another encoder's index is rebuilt.

    Returns:
      The index.

    Raises:
      UserError: if no image can be decoded, or the file's folder cannot be written or another
        process writes there.
    """
    about = {"version": VERSION, **about, "images": images.key} | dataclasses.asdict(prepare)
    kept = _read(path, about)
    row_of = {} if kept is None else {key: row for row, key in enumerate(_keys(kept))}
    keys, known_broken = list(_keys(images)), kept.broken if kept else {}
    kept_row = np.array([row_of.get(key, -1) for key in keys])
    is_broken = np.array([key in known_broken for key in keys])
    why = {row: known_broken[keys[row]] for row in np.flatnonzero(is_broken)}
    missing = np.flatnonzero((kept_row < 0) & ~is_broken)
    num_gone = 0 if kept is None else len(np.setdiff1d(kept.id, images.id))
    _report(path, images, int(np.sum(kept_row >= 0)), len(missing), num_gone)
    if not len(missing) and not num_gone:
        _report_left_out(path, images, why)
        return kept

    check_writable(path.parent)
    with writing(path.parent):
        rows, source = _Rows(images, kept, kept_row), Prepared(images, missing, prepare)
        if len(missing):
            _embed_missing(rows, missing, source, embed, partial(_save, path, about))
        why |= {missing[i]: text for i, text in source.unreadable.items()}
        is_broken[missing[sorted(source.broken)]] = True
        broken = {keys[row]: why[row] for row in np.flatnonzero(is_broken)}
        index = rows.index()._replace(broken=broken)
        if not len(index.h):
            raise UserError(
                f"{images.title}: none of the {len(images.id)} images can be decoded: give "
                f"files of {' '.join(extensions())}"
            )
        _report_left_out(path, images, why)
        num_embedded = len(missing) - len(source.unreadable)
        if num_embedded or num_gone or source.broken:
            _save(path, about, index)
        return index._replace(num_embedded=num_embedded)


def check_writable(folder: Path) -> None:
    """Makes a folder; raises UserError if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): the index is kept there; give a DIR "
            "that you may write to, such as a copy of the run"
        ) from error


class _Rows:
    """Embeddings of a listing's images, filled in step by step."""

    def __init__(self, images: Listing, kept: Index | None, kept_row: np.ndarray):
        self._images, self._is_known, self._h = images, kept_row >= 0, None
        if kept is not None:
            self._make_room(kept.h.shape[1])
            self._h[self._is_known] = kept.h[kept_row[self._is_known]]

    def put(self, rows: np.ndarray, h: np.ndarray) -> None:
        """Fills in some rows; rows int [n], h [n, F]."""
        if self._h is None:
            self._make_room(h.shape[1])
        self._h[rows], self._is_known[rows] = h, True

    def index(self) -> Index:
        """The rows filled in so far."""
        known = slice(None) if self._is_known.all() else self._is_known  # a slice avoids the copy
        return Index(self._h[known], self._images.id[known], self._images.stamp[known])

    def _make_room(self, width: int) -> None:
        self._h = np.empty((len(self._is_known), width), np.float32)


def _embed_missing(
    rows: _Rows,
    missing: np.ndarray,
    source: Prepared,
    embed: Embed,
    save: Callable[[Index], None],
) -> None:
    """Embeds the missing images and saves now and then."""
    done, saved, save_seconds = 0, time.monotonic(), 0.0
    batch_size = min(BATCH_SIZE, len(missing))
    with counting("embedding", len(missing)) as show:
        for h in embed_batches(embed, source, batch_size=batch_size, size=None):
            good = [i for i in range(len(h)) if done + i not in source.unreadable]
            rows.put(missing[done : done + len(h)][good], h[good])
            done += len(h)
            show(done)
            now = time.monotonic()
            if now - saved > max(SAVE_EVERY_SECONDS, save_seconds / SAVING_SHARE):
                save(rows.index())
                saved = time.monotonic()
                save_seconds = saved - now


def _keys(images: Listing | Index) -> Iterator[tuple]:
    """Keys that match images with their rows."""
    return zip(images.id.tolist(), *images.stamp.T.tolist(), strict=True)


def _read(path: Path, about: dict[str, Any]) -> Index | None:
    """The index of an earlier call, or None; an unusable one is reported in one line."""
    if not path.exists():
        return None
    try:
        features = read_features(path)
        with np.load(path, allow_pickle=False) as arrays:
            stamp, there = arrays["stamp"], json.loads(str(arrays["about"]))
            broken = json.loads(str(arrays["broken"])) if "broken" in arrays else []
        is_whole = stamp.shape == (len(features.h), 2) and isinstance(there, dict)
        broken = {
            (str(name), int(size), int(time)): str(*why or ["damaged"])
            for name, size, time, *why in broken
        }
    except (UserError, ArithmeticError, RecursionError, *READ_ERRORS):
        is_whole = False
    if not is_whole:
        say(f"{path} is damaged: it is rebuilt")
        return None
    differing = sorted(key for key in {*there, *about} if there.get(key) != about.get(key))
    if "backbone_digest" in differing:
        steps = f"step {there.get('step')} there, {about['step']} here"
        say(f"{path} is of another checkpoint ({steps}): it is rebuilt")
    elif differing:
        key = differing[0]
        said = f"{key} {there.get(key)} there, {about.get(key)} here"
        say(f"{path} was made differently ({said}): it is rebuilt")
    return None if differing else Index(features.h, features.id, stamp, broken=broken)


def _save(path: Path, about: dict[str, Any], index: Index) -> None:
    features = LabelledFeatures(index.h, np.full(len(index.h), -1, np.int32), index.id)
    broken = json.dumps([(*key, why) for key, why in index.broken.items()])
    save_features(path, features, about=json.dumps(about), stamp=index.stamp, broken=broken)


def _report(path: Path, images: Listing, num_kept: int, num_missing: int, num_gone: int) -> None:
    if not num_kept and not num_gone:
        say(f"{images.title}: {num_missing:,} images to embed into {path}")
    elif not num_missing and not num_gone:
        say(f"{path}: {num_kept:,} embeddings, nothing has changed")
    else:
        say(
            f"{path}: of {images.title}, {num_missing:,} are new or changed and embedded, "
            f"{num_kept:,} are as they were, {num_gone:,} are gone"
        )


def _report_left_out(index_path: Path, images: Listing, why: Mapping[int, str]) -> None:
    """Names the first images that are left out in one warning, and all in a file by the index."""
    path = index_path.with_suffix(".left_out.txt")
    texts = [f"{name} (not a file)" for name in images.not_files]
    texts += [f"{images.root / images.id[row]} ({why[row]})" for row in sorted(why)]
    if not texts:
        if path.exists():
            path.unlink()
        return
    listed = "".join(f"{' '.join(text.splitlines())}\n" for text in texts)
    if not path.is_file() or path.read_text("utf-8", "surrogateescape") != listed:
        write_atomically(path, listed)
    some = "; ".join(texts[:_NAMED_FILES]) + ("; ..." if len(texts) > _NAMED_FILES else "")
    say(
        f"warning: {len(texts)} of the {len(images.id) + len(images.not_files)} images of "
        f"{images.title} cannot be decoded and are left out (all are in {path}): {some}"
    )
