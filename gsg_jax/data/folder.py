"""The user's own images in folders."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gsg_jax.console import UserError, say
from gsg_jax.data import source as base
from gsg_jax.data.decode import DECODE_ERRORS, decode, header_shape

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
# Above this many files, opening reads headers only and nothing is held in memory.
FULL_CHECK_LIMIT = 20_000
_NAMED_FILES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files that are decoded when they are read.

    Attributes:
      name: of the data set.
      paths: the image files.
      labels: int32 [N], or None.
      class_names: one a label, or empty.
      image_shape: (H, W, 3) that all images have, or None.
      channels: 3 for RGB, 1 for grayscale.
    """

    name: str
    paths: tuple[Path, ...]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        # For a worker process: a million Path objects would take it 11 s and 400 MiB.
        return vars(self) | {"paths": tuple(map(str, self.paths)), "labels": None}

    def image(self, i: int) -> np.ndarray:
        """Decodes image i.

        Args:
          i: position in [0, N).

        Returns:
          uint8 [H, W, channels], turned the way its camera says.

        Raises:
          UserError: where the file cannot be decoded; nothing takes its place.
        """
        try:
            return decode(self.paths[i], channels=self.channels, exif=True)
        except DECODE_ERRORS as error:
            raise UserError(
                f"cannot decode {self.paths[i]} ({error}): repair or remove it and start again"
            ) from error


def open_folder(directory: str, split: str, memory_limit_mb: float) -> base.Source | None:
    """Opens a folder of images.

    The folder holds class folders (a label is the position of the class among the sorted ones that
    hold images; images may lie in folders below) or images (without labels); or it holds train/ and
    test/ or val/, each of one of these forms. With both test/ and val/, the first that has class
    folders is used. A folder whose only sub-folder is train/ is its training set.

    Files are checked at opening: up to 20,000 by decoding them, more by their headers alone. What
    fails is skipped with one warning. Up to 20,000 images of one size are held in memory if they
    fit. Files are never changed.

    Args:
      directory: the folder.
      split: "train" or "test".
      memory_limit_mb: limit of the decoded images in units of 2**20 bytes.

    Returns:
      The source, or None for "test" where the folder has no test set.

    Raises:
      UserError: where the folder is missing, unreadable, of neither form, or without usable images.
    """
    if not directory:
        raise UserError("data.name 'folder' needs a folder: pass --config.data.dir=PATH")
    try:
        train_root, test_root = _split_roots(Path(directory).expanduser())
    except RuntimeError as error:
        raise UserError(f"--config.data.dir={directory}: {error} Give its whole path") from error
    root = train_root if split == "train" else test_root
    if root is None:
        return None
    class_names = _class_names(train_root)
    present = class_names
    if root != train_root:
        present = _class_names(root)
        class_names = _shared_class_names(root, train_root, present, class_names)
    if present:
        found = [(p, class_names.index(c)) for c in present for p in _images_below(root / c)]
    else:
        found = [(path, -1) for path in _images_below(root)]
    return _check(root, found, class_names, memory_limit_mb)


def training_folder(directory: str) -> Path:
    """The folder of a run's training images: `directory` itself, or train/ in it.

    Args:
      directory: as of open_folder.

    Raises:
      UserError: where it cannot be listed.
    """
    return _split_roots(Path(directory).expanduser())[0]


def images_below(root: Path) -> list[Path]:
    """All images in and below a folder, however they are filed, in a fixed order.

    Args:
      root: the folder; its own sub-folders may be links, those further down are not followed.

    Returns:
      The files with an image's extension, hidden ones left out; not one of them was opened.

    Raises:
      UserError: where a folder cannot be listed.
    """
    folders, images = _list(root)
    return [
        *(root / name for name in images),
        *(path for name in folders for path in _images_below(root / name)),
    ]


def _split_roots(root: Path) -> tuple[Path, Path | None]:
    """Returns the folders of the training and of the test set."""
    folders, images = _list(root)
    if "train" not in folders or images:
        return root, None
    candidates = [root / name for name in ("test", "val") if name in folders]
    if not candidates:
        # One class named "train" among no others is a training set without a test set.
        return (root / "train", None) if folders == ["train"] else (root, None)
    labelled = [path for path in candidates if _class_names(path)]
    return root / "train", (labelled or candidates)[0]


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the sorted names of a folder's sub-folders and images, without hidden ones."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((e.name, _is_dir(e)) for e in found if not e.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"cannot list the folder {folder} ({error.strerror}): check data.dir and its rights"
        ) from error
    folders = [name for name, is_folder in entries if is_folder]
    images = [n for n, is_folder in entries if not is_folder and n.lower().endswith(EXTENSIONS)]
    return folders, images


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: as an image it is broken, and told as that
        return False


def _images_below(root: Path) -> Iterator[Path]:
    """Yields all images in and below a folder, in a fixed order."""
    folders, images = _list(root)
    yield from (root / name for name in images)
    for name in folders:
        # A linked class folder is the user's wish; a link further down may be a circle.
        if not (root / name).is_symlink():
            yield from _images_below(root / name)


def _class_names(root: Path) -> tuple[str, ...]:
    """Returns the sorted sub-folders that hold images, empty where the images lie in the root."""
    folders, images = _list(root)
    names = tuple(name for name in folders if any(_images_below(root / name)))
    if names and images:
        raise UserError(
            f"{root} holds both images ({images[0]}) and class folders ({names[0]}): "
            "move the images into a class folder"
        )
    return names


def _shared_class_names(
    root: Path, train_root: Path, present: tuple[str, ...], known: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the training set's classes for the test set, so that labels mean the same in both."""
    if not known or not present:
        return present
    if not set(present) <= set(known):
        unknown = sorted(set(present) - set(known))[0]
        raise UserError(f"{root} has the class {unknown!r} that {train_root} lacks: rename it")
    return known


def _check(
    root: Path,
    found: list[tuple[Path, int]],
    class_names: tuple[str, ...],
    memory_limit_mb: float,
) -> base.Source:
    """Returns the usable images, in memory where they may be."""
    paths = [path for path, _ in found]
    if len(paths) > FULL_CHECK_LIMIT:
        with ThreadPoolExecutor(base.num_decode_threads()) as pool:
            shapes = list(pool.map(functools.partial(_attempt, header_shape), paths))
        images = None
    else:
        shapes, images = _decode_check(paths, memory_limit_mb)
    usable = np.array([shape is not None for shape in shapes], bool)
    _report(root, [p for p, good in zip(paths, usable, strict=True) if not good], len(paths))
    labels = None
    if class_names:
        labels = np.array([label for _, label in found], np.int32)[usable]
    kept = tuple(path for path, good in zip(paths, usable, strict=True) if good)
    if images is not None:
        # The copy is spared where every file is good.
        images = images if usable.all() else images[usable]
        return base.ArraySource("folder", images, labels, class_names, kept)
    different = set(shapes) - {None}
    shape = different.pop() if len(different) == 1 else None
    return FolderSource("folder", kept, labels, class_names, shape)


def _attempt(read: Callable[[Path], Any], path: Path) -> Any:
    """Returns what a reader returns, None where the file is broken, or is none."""
    try:
        return read(path) if path.is_file() else None  # to open a pipe would wait for ever
    except DECODE_ERRORS:
        return None


def _decode_check(
    paths: Sequence[Path], memory_limit_mb: float
) -> tuple[list[tuple[int, int, int] | None], np.ndarray | None]:
    """Decodes every file once.

    Returns:
      (shapes, images): each image's shape, None where it is broken; and the images, [N, H, W, 3]
      with rows of broken files undefined, None where sizes differ or the limit is passed.
    """
    read = functools.partial(_attempt, functools.partial(decode, exif=True))
    num_threads = base.num_decode_threads()
    shapes: list[tuple[int, int, int] | None] = []
    images = None
    common = None
    with ThreadPoolExecutor(num_threads) as pool:
        # Few at a time: photographs are large, and a result waits in memory to be looked at.
        for start in range(0, len(paths), 4 * num_threads):
            chunk = paths[start : start + 4 * num_threads]
            for i, pixels in enumerate(pool.map(read, chunk), start):
                shapes.append(None if pixels is None else pixels.shape)
                if pixels is None:
                    continue
                if common is None:
                    common = pixels.shape
                    if base.fits(len(paths), common, memory_limit_mb):
                        images = np.empty((len(paths), *common), np.uint8)
                if pixels.shape != common:
                    images = None
                if images is not None:
                    images[i] = pixels
    return shapes, images


def _report(root: Path, broken: list[Path], num_files: int) -> None:
    """Names what cannot be used in one warning, and fails where nothing is left."""
    if len(broken) == num_files:
        raise UserError(
            f"{root} holds no usable image ({num_files} tried): "
            "add JPEG, PNG or WebP files (.jpg .jpeg .png .webp)"
        )
    if broken:
        names = ", ".join(str(path.relative_to(root)) for path in broken[:_NAMED_FILES])
        more = ", ..." if len(broken) > _NAMED_FILES else ""
        say(
            f"warning: {len(broken)} of {num_files} images in {root} cannot be decoded and are "
            f"skipped: {names}{more}"
        )
