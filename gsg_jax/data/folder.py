"""Images in the user's own folders."""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gsg_jax.console import UserError, given_path, say
from gsg_jax.data.decode import DECODE_ERRORS, decode, extensions, header_shape, reason
from gsg_jax.data.files import Listed, list_images
from gsg_jax.data.source import ArraySource, Source, fits, num_decode_threads, unreadable

# Names of the splits in any case; the first of several test sets with labels is used.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "eval", "dev")
# With more files than this, opening reads headers only and holds nothing in memory, except for
# images of so few pixels that decoding all of them takes seconds.
FULL_CHECK_LIMIT = 2_000
SMALL_PIXELS = 64 * 64
_NAMED_FILES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files, decoded each time they are read.

    Attributes:
      name: of the data set.
      paths: the image files.
      labels: int32 [N], or None.
      class_names: one per label, or empty.
      image_shape: (H, W, 3) of every image, or None.
      notes: what was understood and what was left out, for people.
      left_out: what is wrong with each image that was left out.
    """

    name: str
    paths: tuple[Path, ...]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        # For worker processes: unpickling a million Path objects takes 11 s and 400 MiB.
        return vars(self) | {"paths": tuple(map(str, self.paths)), "labels": None}

    def image(self, i: int) -> np.ndarray:
        """Decodes image i, uint8 [H, W, 3], in the orientation of its EXIF data.

        Raises:
          UserError: if the file cannot be read; BrokenImage if it cannot be decoded.
        """
        try:
            return decode(self.paths[i], exif=True)
        except DECODE_ERRORS as error:
            text = f"cannot decode {self.paths[i]} ({reason(error)})"
            raise unreadable(error, text) from error


class Splits(NamedTuple):
    """The folders of a data set.

    Attributes:
      train: of the training set.
      test: of the test set, or None.
      unused: names of folders beside them that are neither.
    """

    train: Path
    test: Path | None = None
    unused: tuple[str, ...] = ()


def open_folder(
    directory: str, split: str, memory_limit_mb: float, follow_links: bool = False
) -> Source | None:
    """Opens a folder of images.

    The folder holds class folders or, without labels, images; or it holds a training and a test
    set, each in one of these forms, in folders named like TRAIN_NAMES and TEST_NAMES in any case. A
    label is the position of the class among the sorted class folders that hold images, which may
    lie in folders further down. If there are several test sets, the first in the order of the names
    that has class folders is used. If train/ is the only sub-folder, it is the training set.

    Files are checked when the folder is opened: up to 2,000, or more images of one size up to
    64 x 64 pixels, by decoding them; others by their headers and their last bytes. Broken files are
    skipped with one warning; files found broken only when read raise BrokenImage. Decoded images
    are held in memory if they have one size and fit. Files are never changed. A file is used once,
    whatever links to it.

    Args:
      directory: the folder.
      split: "train" or "test".
      memory_limit_mb: limit of the decoded images in units of 2**20 bytes.
      follow_links: whether links that lead out of the folder are followed.

    Returns:
      The source, or None for "test" if the folder has no test set.

    Raises:
      UserError: if the folder is missing, unreadable, in neither form, or without usable images.
    """
    if not directory:
        raise UserError("data.name 'folder' needs a folder: pass --config.data.dir=PATH")
    top = given_path("--config.data.dir", directory)
    list_below = functools.partial(list_images, within=top, follow_links=follow_links)
    splits = find_splits(top, follow_links)
    if split == "test" and splits.test is None:
        return None
    train = list_below(splits.train)
    listed = train if split == "train" else list_below(splits.test)
    known, present = _class_names(train), _class_names(listed)
    if known and (unknown := sorted({*present} - {*known})):
        raise UserError(
            f"{listed.root} has the class {unknown[0]!r} that {train.root} lacks: rename it"
        )
    names, labels = (), None
    if present:
        names = known or present  # the training set's, so that labels mean the same
        place = {name: label for label, name in enumerate(names)}
        labels = np.array([place[name.split("/")[0]] for name in listed.names], np.int32)
    _warn_of_names(listed)
    return _check(listed, labels, names, memory_limit_mb, _notes(top, splits, listed))


def find_splits(root: Path, follow_links: bool = False) -> Splits:
    """Returns the folders of the training and of the test set of a folder.

    Raises:
      UserError: if it cannot be listed.
    """
    try:
        with os.scandir(root) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"cannot list the folder {root} ({error.strerror}): check data.dir and its rights"
        ) from error
    folders = sorted(entry.name for entry in entries if os.path.isdir(entry.path))
    has_images = any(
        entry.name.lower().endswith(extensions()) for entry in entries if entry.name not in folders
    )
    train, tests = _named(folders, TRAIN_NAMES)[:1], _named(folders, TEST_NAMES)
    if not train or has_images:
        return Splits(root)
    if not tests and folders != train:
        return Splits(root)
    for name in (*train, *tests):
        if not follow_links and not (root / name).resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{root / name} leads out of the folder: set --config.data.follow_links=true"
            )
    if not tests:
        # train/ alone is a training set without a test set, not a class named "train".
        return Splits(root / train[0])
    test = tests[0]
    if len(tests) > 1:
        list_below = functools.partial(list_images, within=root, follow_links=follow_links)
        test = next((name for name in tests if _class_names(list_below(root / name))), test)
    unused = tuple(name for name in folders if name not in (train[0], test))
    return Splits(root / train[0], root / test, unused)


def _named(folders: Sequence[str], names: Sequence[str]) -> list[str]:
    """The folders that have one of the names in any case, in the order of the names."""
    known = [folder for folder in folders if folder.lower() in names]
    return sorted(known, key=lambda folder: (names.index(folder.lower()), folder != folder.lower()))


def _class_names(listed: Listed) -> tuple[str, ...]:
    """Returns the sorted sub-folders that hold images; none if the images lie in the root."""
    first = {name.split("/")[0]: name for name in reversed(listed.names) if "/" in name}
    flat = next((name for name in listed.names if "/" not in name), None)
    names = tuple(sorted(first))
    if names and flat:
        raise UserError(
            f"{listed.root} holds both images ({flat}) and class folders ({names[0]}): "
            "move the images into a class folder"
        )
    return names


def _warn_of_names(listed: Listed) -> None:
    if warning := listed.warning():
        say(warning)
    if listed.links_out:
        say(
            f"warning: {len(listed.links_out)} links in {listed.root} lead out of the folder and "
            f"are left out: {_some(listed.links_out)}; --config.data.follow_links=true follows them"
        )


def _notes(top: Path, splits: Splits, listed: Listed) -> tuple[str, ...]:
    """What was understood and what was left out, in short sentences."""
    notes = []
    if splits.train != top and listed.root == splits.train:
        test = f", {splits.test.name}/ the test set" if splits.test else ""
        unused = _some([f"{name}/" for name in splits.unused])
        unused = unused and f", not used: {unused}"
        notes.append(f"{splits.train.name}/ is the training set{test}{unused}")
    if listed.num_same:
        notes.append(f"left out: {listed.num_same:,} links to what is listed already")
    if listed.others:
        notes.append(f"ignored: {ignored(listed.others)}")
    return tuple(notes)


def ignored(others: Counter) -> str:
    """Returns how many files of which extensions are not read, and what would read them."""
    kinds = [f"{count:,} {kind or 'without extension'}" for kind, count in others.most_common()]
    text = _some(kinds)
    missing = sorted(set(others) & set(extensions(readable=False)))
    if missing:
        text += f" (pip install 'gsg_jax[heif]' reads {' '.join(missing)})"
    return text


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED_FILES]) + (", ..." if len(names) > _NAMED_FILES else "")


def _check(
    listed: Listed,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    memory_limit_mb: float,
    notes: tuple[str, ...],
) -> Source:
    """Returns the usable images, in memory if they fit."""
    paths = listed.paths
    if len(paths) > FULL_CHECK_LIMIT:
        with ThreadPoolExecutor(num_decode_threads()) as pool:
            shapes = list(pool.map(functools.partial(_attempt, header_shape), paths))
        images = None
    if len(paths) <= FULL_CHECK_LIMIT or _are_small(shapes, memory_limit_mb):
        shapes, images = _decode_check(paths, memory_limit_mb)
    usable = np.array([not isinstance(shape, str) for shape in shapes], bool)
    broken = [
        f"{n} ({why})" for n, why in zip(listed.names, shapes, strict=True) if isinstance(why, str)
    ]
    broken = [*(f"{name} (not a file)" for name in listed.not_files), *broken]
    _report(listed, broken)
    left_out = tuple(f"{listed.root}/{text}" for text in (*listed.unlisted, *broken))
    if labels is not None:
        labels = labels[usable]
    kept = tuple(path for path, good in zip(paths, usable, strict=True) if good)
    if images is not None:
        # No copy if every file is good.
        images = images if usable.all() else images[usable]
        return ArraySource("folder", images, labels, class_names, kept, notes, left_out)
    different = {shape for shape in shapes if not isinstance(shape, str)}
    shape = different.pop() if len(different) == 1 else None
    return FolderSource("folder", kept, labels, class_names, shape, notes=notes, left_out=left_out)


def _are_small(shapes: Sequence[tuple[int, int, int] | str], memory_limit_mb: float) -> bool:
    """Whether images, of which some may be broken, are small, of one shape, and fit in memory."""
    shape, *others = {shape for shape in shapes if not isinstance(shape, str)} or {(0, 0, 0)}
    is_small = 0 < shape[0] * shape[1] <= SMALL_PIXELS
    return is_small and not others and fits(len(shapes), shape, memory_limit_mb)


def _attempt(read: Callable[[Path], Any], path: Path) -> Any:
    """Returns what `read` returns; what is wrong, as text, if the file is broken."""
    try:
        return read(path)
    except (*DECODE_ERRORS, MemoryError) as error:
        return reason(error)


def _decode_check(
    paths: Sequence[Path], memory_limit_mb: float
) -> tuple[list[tuple[int, int, int] | str], np.ndarray | None]:
    """Decodes every file once.

    Returns:
      (shapes, images): each image's shape, or what is wrong with it; and the images, [N, H, W, 3],
      with undefined rows for broken files, or None if sizes differ or the limit is exceeded.
    """
    read = functools.partial(_attempt, functools.partial(decode, exif=True))
    num_threads = num_decode_threads()
    shapes: list[tuple[int, int, int] | str] = []
    images = None
    common = None
    with ThreadPoolExecutor(num_threads) as pool:
        # Few at a time, since decoded photographs wait in memory.
        for start in range(0, len(paths), 4 * num_threads):
            chunk = paths[start : start + 4 * num_threads]
            for i, pixels in enumerate(pool.map(read, chunk), start):
                shapes.append(pixels if isinstance(pixels, str) else pixels.shape)
                if isinstance(pixels, str):
                    continue
                if common is None:
                    common = pixels.shape
                    if fits(len(paths), common, memory_limit_mb):
                        images = np.empty((len(paths), *common), np.uint8)
                if pixels.shape != common:
                    images = None
                if images is not None:
                    images[i] = pixels
    return shapes, images


def _report(listed: Listed, broken: Sequence[str]) -> None:
    """Names the broken files in one warning; raises UserError if no usable file is left."""
    num_tried = len(listed.names) + len(listed.not_files)
    some = _some(broken)
    if len(broken) == num_tried:
        found = f"; found {ignored(listed.others)}" if listed.others else ""
        raise UserError(
            f"{listed.root} holds no usable image ({num_tried} tried): add files of "
            f"{' '.join(extensions())}{found}{some and '; left out: ' + some}"
        )
    if broken:
        say(
            f"warning: {len(broken)} of {num_tried} images in {listed.root} cannot be decoded "
            f"and are skipped: {some}"
        )
