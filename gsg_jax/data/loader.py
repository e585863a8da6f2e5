"""Batches of images: shuffled, without end, for training; in order, once, for evaluation."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np

from gsg_jax.console import UserError, say_everywhere
from gsg_jax.data.crops import CropRecipe, centre_cut
from gsg_jax.data.reader import Reader, check_shape
from gsg_jax.data.source import (
    ArraySource,
    BrokenImage,
    Source,
    Subset,
    naming_memory,
    num_channels,
    num_decode_threads,
)
from gsg_jax.data.workers import Processes, Threads

# The stream of a seed's randomness that the order is drawn from; the crops have another.
_SHUFFLE_STREAM = 0
# Two batches are made at a time, so that the decoders have work at the end of each.
_BATCH_THREADS = 2
_NO_END = 2**62


class TrainLoader:
    """An endless stream of training batches that can be resumed at any step.

    Every epoch is a new permutation of the source, cut into whole batches; its remainder is left
    out. A batch is a function of (source, seed, batch_size, step, crops): it depends neither on
    threads or processes nor on the step at which the stream began. The shares of num_hosts hosts,
    in order, are the batch of one host. A damaged image is replaced by the next one of the
    same permutation that can be decoded; the first follows the last.

    Attributes:
      skipped: what is wrong with each damaged image that was met, by its index.
      when_skipped: called with that text when the image is first met.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        crops: CropRecipe | None = None,
        host_index: int = 0,
        num_hosts: int = 1,
        num_threads: int = 2,
        num_processes: int = 0,
        prefetch: int = 2,
        with_labels: bool = False,
    ) -> None:
        """Checks the settings; nothing is read yet.

        Args:
          source: the images.
          batch_size: B, images per step over all hosts.
          seed: of order and crops, 0 or more.
          crops: which crops to cut out of each image; None leaves images whole.
          host_index: this host, in [0, num_hosts).
          num_hosts: hosts that share each batch.
          num_threads: threads that decode and crop, 1 or more.
          num_processes: processes that decode and crop instead; 0 for the threads. Images that are
            held in memory are always left to the threads.
          prefetch: batches to make ahead; 0 makes each one when it is asked for.
          with_labels: whether batches have labels too; the source must have some.

        Raises:
          UserError: if a batch is larger than the source or cannot be shared among the hosts, or
            if images that may differ in shape are not cropped.
        """
        _check_batch(source, batch_size, num_hosts)
        if crops is None:
            _check_one_shape(source)
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._reader = Reader(source, seed, crops)
        self._first_place = host_index * (batch_size // num_hosts)
        self._last_place = self._first_place + batch_size // num_hosts
        self._num_threads, self._num_processes = num_threads, num_processes
        self.skipped: dict[int, str] = {}
        self.when_skipped: Callable[[str], None] = lambda text: None
        self._prefetch = prefetch
        self._labels = source.labels if with_labels else None
        # Two orders are kept, since batches are made ahead across the end of an epoch.
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the source."""
        return len(self._source) // self._batch_size

    def iterate(self, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's share of the batches of first_step, first_step + 1, and so on.

        Args:
          first_step: 0 or more.

        Returns:
          Endless iterator of {"image": uint8 [B / num_hosts, H, W, C]}; with crops, of the arrays
          of CropRecipe.cut, [B / num_hosts, V, S, S, C]; with labels, also of "label": int32
          [B / num_hosts]. Reading it raises UserError if an image cannot be read.
        """
        if self._num_processes and _is_encoded(self._source):
            workers = Processes(self._reader, self._num_processes)
        else:
            workers = Threads(self._reader, self._num_threads)
        options = grain.ReadOptions(
            num_threads=min(_BATCH_THREADS, self._prefetch), prefetch_buffer_size=self._prefetch
        )
        steps = grain.MapDataset.range(_NO_END).map(functools.partial(self._batch, workers))
        batches = iter(steps.to_iter_dataset(options))
        # The step alone is the position, so checkpoints need not know Grain's state.
        batches.set_state({"next_index": first_step})
        try:
            while True:
                yield next(batches)
        finally:
            batches.close()
            workers.close()

    def _permutation(self, epoch: int) -> np.ndarray:
        # Grain's own shuffle and batch cost 17 microseconds an image, and make epoch 1 of a seed
        # epoch 0 of the next.
        seeds = np.random.SeedSequence(self._seed, spawn_key=(_SHUFFLE_STREAM, epoch))
        return np.random.Generator(np.random.PCG64(seeds)).permutation(len(self._source))

    def _batch(self, workers: Threads | Processes, step: int) -> dict[str, np.ndarray]:
        """Returns this host's share of one step, [B / num_hosts, ...] each."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        order, start = self._order(epoch), step_of_epoch * self._batch_size
        chosen = order[start + self._first_place : start + self._last_place]
        if self._reader.crops is None and isinstance(self._source, ArraySource):
            batch = {"image": self._source.images[chosen]}
        else:
            chosen = chosen.copy()  # damaged images are replaced in it
            images = self._images(workers, step, order, start + self._first_place, chosen)
            batch = _stack(images, len(chosen))
        return batch if self._labels is None else batch | {"label": self._labels[chosen]}

    def _images(
        self,
        workers: Threads | Processes,
        step: int,
        order: np.ndarray,
        start: int,
        chosen: np.ndarray,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the images of `chosen`, which begin at `start` in `order`."""
        calls = [(step, self._first_place + k, int(i)) for k, i in enumerate(chosen)]
        for k, image in enumerate(workers.read(calls)):
            place, position = self._first_place + k, start + k
            while isinstance(image, BrokenImage):
                self._skip(int(chosen[k]), image)
                position = (position + 1) % len(order)
                if position == start + k:
                    raise UserError(f"{self._source.name!r} has no image that can be decoded")
                chosen[k] = order[position]
                image = next(workers.read([(step, place, int(chosen[k]))]))
            yield image

    def _skip(self, i: int, broken: BrokenImage) -> None:
        if i not in self.skipped:
            self.skipped[i] = str(broken)
            self.when_skipped(str(broken))
            say_everywhere(f"warning: {broken}; the next one of the epoch's order takes its place")


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    size: int | None = None,
    first: int = 0,
    host_index: int = 0,
    num_hosts: int = 1,
) -> Iterator[dict[str, np.ndarray | int]]:
    """Yields all images once, in the order of the source.

    Args:
      source: the images.
      batch_size: B, images per batch over all hosts, a multiple of their number.
      size: S: the short side is resized to S * 256 / 224 and the centre S x S cut. None leaves
        images as they are; they must then have one shape.
      first: the image to begin with.
      host_index: this host, in [0, num_hosts).
      num_hosts: hosts that share each batch.

    Returns:
      Iterator of {"image": uint8 [B / num_hosts, H, W, C], "num_valid": int}. The last batch is
      padded with zeros after its num_valid images, which are counted over all hosts. A damaged
      image is black, and named in a warning.

    Raises:
      UserError: if images may differ in shape and no size is given.
    """
    if size is None:
        _check_one_shape(source)
    share = batch_size // num_hosts
    read = functools.partial(_image_or_none, source, size)

    def begin(start: int) -> list[Callable[[], np.ndarray | None]]:
        start += host_index * share
        chosen = range(start, min(start + share, len(source)))
        if size is None and not _is_encoded(source):  # asking a thread takes longer
            return [functools.partial(read, i) for i in chosen]
        return [pool.submit(read, i).result for i in chosen]

    def batches() -> Iterator[dict[str, np.ndarray | int]]:
        try:
            ahead = begin(first)
            shape = (size, size, num_channels(source)) if size else source.image_shape
            for start in range(first, len(source), batch_size):
                images, ahead = [result() for result in ahead], begin(start + batch_size)
                batch = np.zeros((share, *shape), np.uint8)
                for place, pixels in enumerate(images):
                    batch[place] = 0 if pixels is None else pixels
                yield {"image": batch, "num_valid": min(batch_size, len(source) - start)}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    pool = ThreadPoolExecutor(num_decode_threads(), thread_name_prefix="decode")
    return batches()


def _image_or_none(source: Source, size: int | None, i: int) -> np.ndarray | None:
    """Image i, its centre if a size is given; None, with a warning, if it is damaged."""
    with naming_memory(source, i):
        try:
            pixels = source.image(i)
        except BrokenImage as broken:
            say_everywhere(f"warning: {broken}; a black image takes its place")
            return None
    return check_shape(source, i, pixels) if size is None else centre_cut(pixels, size)


def _check_batch(source: Source, batch_size: int, num_hosts: int) -> None:
    if batch_size > len(source):
        raise UserError(
            f"data.batch_size {batch_size} is larger than {source.name!r}, which has {len(source)} "
            f"images: set --config.data.batch_size to at most {len(source)}"
        )
    if batch_size % num_hosts:
        raise UserError(
            f"data.batch_size {batch_size} cannot be shared by {num_hosts} hosts: "
            f"set it to a multiple of {num_hosts}"
        )


def _check_one_shape(source: Source) -> None:
    if source.image_shape is None:
        raise UserError(
            f"the images of {source.name!r} differ in shape and cannot form a batch: "
            'set data.crop="host"'
        )


def _is_encoded(source: Source) -> bool:
    """Returns whether images are decoded each time they are read."""
    while isinstance(source, Subset):
        source = source.source
    return not isinstance(source, ArraySource)


def _stack(images: Iterator[dict[str, np.ndarray]], num_images: int) -> dict[str, np.ndarray]:
    """Stacks what was read of each image, by name."""
    stacked = {}
    for k, image in enumerate(images):
        for name, pixels in image.items():
            if name not in stacked:
                stacked[name] = np.empty((num_images, *pixels.shape), np.uint8)
            stacked[name][k] = pixels
    return stacked
