"""Image files below a folder, each of them once: links are told apart from files."""

import contextlib
import os
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

from gsg_jax.console import UserError
from gsg_jax.data.decode import extensions


class Listed(NamedTuple):
    """Files in and below a folder, in a fixed order, none of them opened.

    Attributes:
      root: the folder.
      names: of the images, relative to it, with "/" between folders.
      not_files: likewise, of broken links and pipes that are named like images.
      others: how many files there are of every other extension; "" without one.
      links_out: likewise, links that lead out of the folder and were not followed.
      num_same: other names of listed files and folders (links and hard links), left out.
      unlisted: folders that cannot be listed, each with the reason.
    """

    root: Path
    names: list[str]
    not_files: list[str]
    others: Counter
    links_out: list[str]
    num_same: int
    unlisted: list[str]

    @property
    def paths(self) -> list[Path]:
        """The images."""
        return [self.root / name for name in self.names]

    def warning(self) -> str:
        """The line to print if folders could not be listed, or ''."""
        some = ", ".join(self.unlisted[:5]) + (", ..." if len(self.unlisted) > 5 else "")
        count = len(self.unlisted)
        return some and f"warning: {count} folders in {self.root} are left out: {some}"


def list_images(root: Path, *, within: Path | None = None, follow_links: bool = False) -> Listed:
    """Lists the images in and below a folder, without what is hidden.

    A file is identified by its device and inode, not by its name: real files come first, and a link
    or another name of a listed file is left out, as is a folder that was visited before. The images
    of a folder, by name, precede those of its sub-folders.

    Args:
      root: the folder.
      within: what links may lead to; `root` if None.
      follow_links: whether links may lead anywhere.

    Raises:
      UserError: if the folder cannot be listed; a sub-folder that cannot is left out.
    """
    walk = _Walk(root, within or root, follow_links)
    walk.folder("")
    if walk.links:
        walk.follow()
        for names in (walk.names, walk.not_files):
            names.sort(key=_place)
    found = walk.names, walk.not_files, walk.others, walk.links_out, walk.num_same, walk.unlisted
    return Listed(root, *found)


class _Walk:
    """The lists of Listed, filled folder by folder; links wait until all real files are listed."""

    def __init__(self, root: Path, within: Path, follow_links: bool):
        self._root, self._within, self._follow_links = root, within.resolve(), follow_links
        self._extensions, self._seen = extensions(), set()
        self.names, self.not_files, self.links_out, self.unlisted = [], [], [], []
        self.others, self.num_same = Counter(), 0
        self.links: deque[str] = deque()

    def folder(self, name: str) -> None:
        waiting = [name]
        while waiting:
            name = waiting.pop()
            folder = self._root / name
            try:
                with os.scandir(folder) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                if name:  # such as lost+found
                    self.unlisted.append(f"{name}/ ({error.strerror})")
                    continue
                raise UserError(
                    f"cannot list the folder {folder} ({error.strerror}): check its path and rights"
                ) from error
            if not self._is_new(folder.stat()):
                continue
            folders = []
            for entry in entries:
                inner = f"{name}/{entry.name}" if name else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    self.links.append(inner)
                elif entry.is_dir():
                    folders.append(inner)
                else:
                    self._file(inner, _identity(entry), entry.is_file())
            waiting += reversed(folders)

    def follow(self) -> None:
        """Lists what the links lead to and is not listed yet."""
        while self.links:
            name = self.links.popleft()
            path = self._root / name
            try:
                target, found = path.resolve(strict=True), path.stat()
            except (OSError, RuntimeError):  # it leads nowhere, or to itself
                self._file(name, None, is_file=False)
                continue
            is_folder = path.is_dir()
            if (found.st_dev, found.st_ino) in self._seen:
                self.num_same += 1
            elif not (self._follow_links or target.is_relative_to(self._within)):
                if is_folder or self._is_image(name):
                    self.links_out.append(name)
            elif is_folder:
                self.folder(name)
            else:
                self._file(name, (found.st_dev, found.st_ino), path.is_file())

    def _file(self, name: str, identity: tuple[int, int] | None, is_file: bool) -> None:
        if not self._is_image(name):
            self.others[os.path.splitext(name)[1].lower()] += 1
        elif not is_file or identity is None:
            self.not_files.append(name)
        elif identity in self._seen:
            self.num_same += 1
        else:
            self._seen.add(identity)
            self.names.append(name)

    def _is_image(self, name: str) -> bool:
        return name.lower().endswith(self._extensions)

    def _is_new(self, folder: os.stat_result) -> bool:
        identity = folder.st_dev, folder.st_ino
        is_new = identity not in self._seen
        self._seen.add(identity)
        self.num_same += not is_new
        return is_new


def _identity(entry: os.DirEntry) -> tuple[int, int] | None:
    """The device and inode of a file that is no link; None if it has just vanished.

    What the folder itself says (entry.inode()) is wrong for an overlay or a mounted file, and -1
    for every file of some FUSE systems.
    """
    with contextlib.suppress(OSError):
        found = entry.stat(follow_symlinks=False)
        return found.st_dev, found.st_ino
    return None


def _place(name: str) -> list[tuple[bool, str]]:
    """Sorts the images of a folder before its sub-folders, each by name."""
    *folders, image = name.split("/")
    return [*((True, folder) for folder in folders), (False, image)]
