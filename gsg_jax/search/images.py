"""Images to search: listed by name, with what shows that one has changed, and read one by one."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from gsg_jax.console import UserError
from gsg_jax.data.decode import read_photo
from gsg_jax.data.folder import EXTENSIONS, images_below, training_folder
from gsg_jax.data.open import open_source


class Listing(NamedTuple):
    """Images in a fixed order, none of them opened yet.

    Attributes:
      title: for people.
      key: differs from that of other images on this machine.
      root: the folder of the files; None if the images are not files.
      id: [N], paths below the root, or the images' numbers.
      stamp: int64 [N, 2], size in bytes and time of the last change in ns of each file.
      not_files: paths with the name of an image that are not files, such as a broken link.
      read: (an id, channels) -> uint8 [H, W, channels]; raises UserError if it cannot.
    """

    title: str
    key: str
    root: Path | None
    id: np.ndarray
    stamp: np.ndarray
    not_files: tuple[Path, ...]
    read: Callable[[str | int, int], np.ndarray]

    def name(self, image: str | int) -> str | int:
        """Name of an image for the user: its path, or its number."""
        return int(image) if self.root is None else str(self.root / image)

    def digest(self, image: str | int) -> str:
        """Hex digits of an image's bytes; of its pixels if it is not a file.

        Raises:
          UserError: if the file cannot be read.
        """
        if self.root is None:
            return hashlib.sha256(self.read(image, 0).tobytes()).hexdigest()
        try:
            with open(self.root / image, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(
                f"cannot read {self.root / image} ({error.strerror}): start again"
            ) from error


def list_folder(root: Path) -> Listing:
    """Lists all images in and below a folder, by their names only.

    Raises:
      UserError: if the folder is missing, cannot be listed, or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give --folder=PHOTOS, a folder of images")
    names, stamps, not_files = [], [], []
    for path in images_below(root):
        # Opening a pipe would block; a broken link has no size.
        if not path.is_file():
            not_files.append(path)
            continue
        names.append(str(path.relative_to(root)))
        found = path.stat()
        stamps.append((found.st_size, found.st_mtime_ns))
    if not names:
        raise UserError(
            f"{root} holds no image: give a folder with JPEG, PNG or WebP files "
            f"({' '.join(EXTENSIONS)})"
        )

    return Listing(
        title=str(root),
        key=str(root.resolve()),
        root=root,
        id=np.array(names),
        stamp=np.array(stamps, np.int64),
        not_files=tuple(not_files),
        read=lambda name, channels: read_photo(root / name, channels),
    )


def list_training_images(data: ml_collections.ConfigDict) -> Listing:
    """Lists the images that a run was trained on: those of a folder as files, others by number.

    Raises:
      UserError: if they are no longer there.
    """
    if data.name == "folder":
        return list_folder(training_folder(data.dir))
    source = open_source(data, "train")

    return Listing(
        title=f"{data.name}, {data.train_split}",
        key=f"{data.name}:{data.train_split}:{data.dir}",
        root=None,
        id=np.arange(len(source)),
        stamp=np.full((len(source), 2), -1, np.int64),  # they do not change by themselves
        not_files=(),
        read=lambda number, channels: source.image(int(number)),  # in the run's own channels
    )
