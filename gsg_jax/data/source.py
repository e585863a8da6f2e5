"""The interface of every source of images, a source held in memory, and a subset of a source."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from gsg_jax.console import UserError, say

_CHUNK = 256  # per record, a read of many costs a twentieth of a read of one
_NAMED = 5  # images that a warning names


class BrokenImage(UserError):
    """One image cannot be decoded, however often it is read; the others can."""


MAX_CLASSES = 1_000_000  # so that a column of other numbers is not taken for one of classes


class Source(Protocol):
    """Images that can be read in any order, from several threads at once.

    Attributes:
      name: of the data set, for people.
      labels: int32 [N] in [0, len(class_names)), -1 if unknown; None if the set has none. Reading
        it may cost a pass over the records; class_names is free.
      class_names: one per label; empty if there are no labels.
      image_shape: (H, W, C) of every image; None if they differ or it is not known.
      paths: the images' files; empty if images are not files of their own.
    """

    name: str
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    paths: tuple[Path, ...]

    def __len__(self) -> int: ...

    def image(self, i: int) -> np.ndarray:
        """Returns image i, uint8 [H, W, C] in [0, 255]; raises BrokenImage if it is damaged."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images of one shape, decoded and in memory.

    Attributes:
      name: of the data set.
      images: uint8 [N, H, W, C].
      labels: int32 [N], or None.
      class_names: one per label, or empty.
      paths: the images' files, or empty.
      notes: what was understood and what was left out, for people.
      left_out: what is wrong with each image that was left out.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        """Returns image i, uint8 [H, W, C]."""
        return self.images[i]


def in_memory(
    source: Source, decoded: Callable[[Sequence[int]], Iterable[np.ndarray | BrokenImage]]
) -> ArraySource:
    """Decodes a source whose images have one shape; damaged ones are left out and named.

    Args:
      source: the images.
      decoded: returns the images of some rows, or what is wrong with them.

    Raises:
      UserError: if none is left, or one cannot be read.
    """
    images, left_out = np.empty((len(source), *source.image_shape), np.uint8), {}

    def fill(start: int) -> None:
        rows = range(start, min(start + _CHUNK, len(source)))
        for i, pixels in zip(rows, decoded(rows), strict=True):
            if isinstance(pixels, BrokenImage):
                left_out[i] = str(pixels)
            elif pixels.shape != source.image_shape:  # its header says otherwise
                left_out[i] = f"image {i} is {pixels.shape}, the others {source.image_shape}"
            else:
                images[i] = pixels

    with ThreadPoolExecutor(num_decode_threads()) as pool:
        # list() waits for all and raises the first error.
        list(pool.map(fill, range(0, len(source), _CHUNK)))
    labels, reasons = source.labels, tuple(left_out[i] for i in sorted(left_out))
    if left_out:
        warn_of_left_out(source.name, len(source), reasons)
        is_usable = np.ones(len(source), bool)
        is_usable[list(left_out)] = False
        images, labels = images[is_usable], None if labels is None else labels[is_usable]
    return ArraySource(source.name, images, labels, source.class_names, left_out=reasons)


def warn_of_left_out(where: str, num_images: int, reasons: Sequence[str]) -> None:
    """Warns how many images are left out, and what is wrong with the first.

    Raises:
      UserError: if none is left.
    """
    some = "; ".join(reasons[:_NAMED]) + ("; ..." if len(reasons) > _NAMED else "")
    if len(reasons) == num_images:
        raise UserError(f"{where} holds no image that can be decoded ({num_images} tried): {some}")
    if reasons:
        say(f"warning: {len(reasons)} of {num_images} images of {where} are left out: {some}")


def unreadable(error: Exception, message: str) -> UserError:
    """The error for an image that cannot be read: BrokenImage if its content is to blame.

    An error with a number comes from the system: the file is gone, a disk or a network fails. Such
    an image may be readable later, so leaving it out would change a resumed run.
    """
    return (UserError if getattr(error, "errno", None) else BrokenImage)(message)


def num_channels(source: Source) -> int:
    """The channels of a source's images; UserError if none can be decoded."""
    return (source.image_shape or first_image(source).shape)[-1]


def first_image(source: Source) -> np.ndarray:
    """The first image that is not damaged, uint8 [H, W, C].

    Raises:
      UserError: if none can be decoded.
    """
    for i in range(len(source)):
        with contextlib.suppress(BrokenImage), naming_memory(source, i):
            return source.image(i)
    raise UserError(f"{source.name!r} has no image that can be decoded")


@contextlib.contextmanager
def naming_memory(source: Source, i: int) -> Iterator[None]:
    """Turns a MemoryError into a UserError that names image i."""
    try:
        yield
    except MemoryError as error:
        name = source.paths[i] if source.paths else f"image {i} of {source.name}"
        raise UserError(
            f"not enough memory for {name}: make it smaller or remove it, or decode fewer images "
            "at once: a smaller --config.data.num_threads or num_processes of a training, fewer "
            "processor cores (taskset) of an evaluation"
        ) from error


def num_decode_threads() -> int:
    """Returns how many threads decode when a source is opened: one per usable core, at most 32."""
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(32, len(usable))


def fits(num_images: int, shape: tuple[int, int, int], memory_limit_mb: float) -> bool:
    """Returns whether images of one shape (H, W, C) take no more than the limit, in 2**20 bytes."""
    return num_images * int(np.prod(shape)) <= memory_limit_mb * 2**20


def known_images(source: Source) -> Source:
    """The images of a source that have a label."""
    is_known = source.labels >= 0
    return source if is_known.all() else Subset(source, np.flatnonzero(is_known))


class Subset:
    """Some images of a source, by index; satisfies Source."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices
        self.name, self.class_names = source.name, source.class_names
        self.image_shape = source.image_shape

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of the chosen images, or None."""
        return self.labels_at(slice(None))

    def labels_at(self, rows: np.ndarray | slice) -> np.ndarray | None:
        """Labels of some chosen images; a source of records reads no others."""
        indices = self.indices[rows]
        if labels_at := getattr(self.source, "labels_at", None):
            return labels_at(indices)
        labels = self.source.labels
        return None if labels is None else labels[indices]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files of the chosen images, or none."""
        return tuple(self.source.paths[i] for i in self.indices) if self.source.paths else ()

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:
        """Returns image number `index` of the subset."""
        return self.source.image(int(self.indices[index]))
