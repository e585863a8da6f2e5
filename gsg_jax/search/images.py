"""Images to search: listed by name, with what shows that one has changed, and read one by one."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from gsg_jax.console import UserError, given_path, say
from gsg_jax.data.decode import extensions, read_photo
from gsg_jax.data.files import Listed, list_images
from gsg_jax.data.folder import find_splits, ignored
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


def list_folder(root: Path, *, within: Path | None = None, follow_links: bool = False) -> Listing:
    """Lists all images in and below a folder, by their names only.

    A file is listed once: links to listed files, and other names of them, are left out.

    Args:
      root: the folder.
      within: what links may lead to; `root` if None.
      follow_links: whether links may lead anywhere.

    Raises:
      UserError: if the folder is missing, cannot be listed, or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give --folder=PHOTOS, a folder of images")
    listed = list_images(root, within=within, follow_links=follow_links)
    if not listed.names:
        what = _left_out(listed)
        raise UserError(
            f"{root} holds no image: give a folder with files of {' '.join(extensions())}"
            f"{what and '; ' + what}"
        )
    if warning := listed.warning():
        say(warning)
    if what := _left_out(listed):
        say(f"{root}: {what}")
    stamps = [(root / name).stat() for name in listed.names]

    return Listing(
        title=str(root),
        key=str(root.resolve()),
        root=root,
        id=np.array(listed.names),
        stamp=np.array([(found.st_size, found.st_mtime_ns) for found in stamps], np.int64),
        not_files=tuple(root / name for name in listed.not_files),
        read=lambda name, channels: read_photo(root / name, channels),
    )


def _left_out(listed: Listed) -> str:
    """What is not searched, and how to have it searched."""
    parts = []
    if listed.links_out:
        count = len(listed.links_out)
        parts.append(f"{count:,} links lead out of the folder (--follow_links follows them)")
    if listed.others:
        parts.append(f"ignored {ignored(listed.others)}")
    return "; ".join(parts)


def list_training_images(data: ml_collections.ConfigDict, *, follow_links: bool = False) -> Listing:
    """Lists the images that a run was trained on: those of a folder as files, others by number.

    Args:
      data: of the run.
      follow_links: whether links may lead out of the folder, as data.follow_links lets them.

    Raises:
      UserError: if they are no longer there.
    """
    if data.name == "folder":
        top, follow_links = (
            given_path("--config.data.dir", data.dir),
            follow_links or data.follow_links,
        )
        train = find_splits(top, follow_links).train
        return list_folder(train, within=top, follow_links=follow_links)
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
