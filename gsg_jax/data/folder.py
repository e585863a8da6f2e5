"""Images in the user's own folders."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gsg_jax.console import UserError, say
from gsg_jax.data.decode import DECODE_ERRORS, decode, header_shape
from gsg_jax.data.source import ArraySource, Source, fits, num_decode_threads

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
# With more files than this, opening reads headers only and holds nothing in memory.
FULL_CHECK_LIMIT = 20_000
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
        # For worker processes: unpickling a million Path objects takes 11 s and 400 MiB.
        return vars(self) | {"paths": tuple(map(str, self.paths)), "labels": None}

    def image(self, i: int) -> np.ndarray:
        """Decodes image i, uint8 [H, W, channels], in the orientation of its EXIF data.

        Raises:
          UserError: if the file cannot be decoded; it is not replaced by another.
        """
        try:
            return decode(self.paths[i], channels=self.channels, exif=True)
        except DECODE_ERRORS as error:
            raise UserError(
                f"cannot decode {self.paths[i]} ({error}): repair or remove it and start again"
            ) from error


def open_folder(directory: str, split: str, memory_limit_mb: float) -> Source | None:
    """Opens a folder of images.

    The folder holds class folders or, without labels, images; or it holds train/ and test/ or val/,
    each in one of these forms. A label is the position of the class among the sorted class folders
    that hold images, which may lie in folders further down. If there are both test/ and val/, the
    first that has class folders is used. If train/ is the only sub-folder, it is the training set.

    Files are checked when the folder is opened: up to 20,000 by decoding them, more by their
    headers alone. Broken files are skipped with one warning. Up to 20,000 images of one size are
    held in memory if they fit. Files are never changed.

    Args:
      directory: the folder.
      split: "train" or "test".
      memory_limit_mb: limit of the decoded images in units of 2**20 bytes.

    Returns:
      The source, or None for "test" if the folder has no test set.

    Raises:
      UserError: if the folder is missing, unreadable, in neither form, or without usable images.
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
    known = _class_names(train_root)
    present = known if root == train_root else _class_names(root)
    if known and (unknown := sorted({*present} - {*known})):
        raise UserError(f"{root} has the class {unknown[0]!r} that {train_root} lacks: rename it")
    if present:
        names = known or present  # the training set's, so that labels mean the same
        found = [(p, names.index(c)) for c in present for p in images_below(root / c, False)]
    else:
        names, found = (), [(path, -1) for path in images_below(root, False)]
    return _check(root, found, names, memory_limit_mb)


def training_folder(directory: str) -> Path:
    """Returns the folder of a run's training images: `directory` itself, or train/ in it.

    Args:
      directory: as in open_folder.

    Raises:
      UserError: if it cannot be listed.
    """
    return _split_roots(Path(directory).expanduser())[0]


def images_below(root: Path, follow_links: bool = True) -> Iterator[Path]:
    """Yields all images in and below a folder, in a fixed order.

    Args:
      root: the folder.
      follow_links: whether links to folders are followed directly in it; further down none is.

    Yields:
      The files with an image's extension, without hidden ones; none was opened.

    Raises:
      UserError: if a folder cannot be listed.
    """
    folders, images = _list(root)
    yield from (root / name for name in images)
    for name in folders:
        # Links further down may form a cycle.
        if follow_links or not (root / name).is_symlink():
            yield from images_below(root / name, follow_links=False)


def _split_roots(root: Path) -> tuple[Path, Path | None]:
    """Returns the folders of the training and of the test set."""
    folders, images = _list(root)
    if "train" not in folders or images:
        return root, None
    candidates = [root / name for name in ("test", "val") if name in folders]
    if not candidates:
        # train/ alone is a training set without a test set, not a class named "train".
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
    except OSError:  # a link to itself; if named as an image, it is reported as broken
        return False


def _class_names(root: Path) -> tuple[str, ...]:
    """Returns the sorted sub-folders that hold images; none if the images lie in the root."""
    folders, images = _list(root)
    names = tuple(name for name in folders if any(images_below(root / name, False)))
    if names and images:
        raise UserError(
            f"{root} holds both images ({images[0]}) and class folders ({names[0]}): "
            "move the images into a class folder"
        )
    return names


def _check(
    root: Path,
    found: list[tuple[Path, int]],
    class_names: tuple[str, ...],
    memory_limit_mb: float,
) -> Source:
    """Returns the usable images, in memory if they fit."""
    paths = [path for path, _ in found]
    if len(paths) > FULL_CHECK_LIMIT:
        with ThreadPoolExecutor(num_decode_threads()) as pool:
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
        # No copy if every file is good.
        images = images if usable.all() else images[usable]
        return ArraySource("folder", images, labels, class_names, kept)
    different = set(shapes) - {None}
    shape = different.pop() if len(different) == 1 else None
    return FolderSource("folder", kept, labels, class_names, shape)


def _attempt(read: Callable[[Path], Any], path: Path) -> Any:
    """Returns what `read` returns; None if the file is broken or is not a regular file."""
    try:
        return read(path) if path.is_file() else None  # opening a pipe would block
    except DECODE_ERRORS:
        return None


def _decode_check(
    paths: Sequence[Path], memory_limit_mb: float
) -> tuple[list[tuple[int, int, int] | None], np.ndarray | None]:
    """Decodes every file once.

    Returns:
      (shapes, images): each image's shape, None if it is broken; and the images, [N, H, W, 3] with
      undefined rows for broken files, None if sizes differ or the limit is exceeded.
    """
    read = functools.partial(_attempt, functools.partial(decode, exif=True))
    num_threads = num_decode_threads()
    shapes: list[tuple[int, int, int] | None] = []
    images = None
    common = None
    with ThreadPoolExecutor(num_threads) as pool:
        # Few at a time, since decoded photographs wait in memory.
        for start in range(0, len(paths), 4 * num_threads):
            chunk = paths[start : start + 4 * num_threads]
            for i, pixels in enumerate(pool.map(read, chunk), start):
                shapes.append(None if pixels is None else pixels.shape)
                if pixels is None:
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


def _report(root: Path, broken: list[Path], num_files: int) -> None:
    """Names the broken files in one warning; raises UserError if no usable file is left."""
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
