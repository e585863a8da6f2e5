"""Batches of images from a source: shuffled without end for training, in order for evaluation."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import grain
import numpy as np

from gsg_jax.data.base import ArraySource, Source, num_decode_threads
from gsg_jax.data.crops import ASPECT, centre_cut, random_crops
from gsg_jax.errors import UserError

# Streams of randomness that one seed is split into.
_SHUFFLE, _CROP = 0, 1
# Batches made at the same time, so that decoding threads have work at the end of each.
_BATCH_THREADS = 2
_NO_END = 2**62


class TrainLoader:
    """An endless stream of training batches that any step can be taken up from.

    Every epoch is a new permutation of the source, cut into whole batches; its remainder is left
    out. A batch is a function of (source, seed, batch_size, step) and, where crops are cut on the
    host, of their number, size, area and aspect: not of threads, nor of where the stream began.
    The shares of num_hosts hosts, in order, are the batch of one host.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        num_views: int | None = None,
        crop_size: int | None = None,
        crop_area: tuple[float, float] = (0.2, 1.0),
        crop_aspect: tuple[float, float] = ASPECT,
        num_local: int = 0,
        local_size: int = 96,
        local_area: tuple[float, float] = (0.05, 0.2),
        host_index: int = 0,
        num_hosts: int = 1,
        num_threads: int = 2,
        prefetch: int = 2,
        with_labels: bool = False,
    ) -> None:
        """Checks what is asked for; nothing is read yet.

        Args:
          source: the images.
          batch_size: B, images a step over all hosts.
          seed: of order and crops, 0 or more.
          num_views: V, crops an image; None, like crop_size, to leave images whole.
          crop_size: S, side of a crop in pixels.
          crop_area: least and greatest share of an image's area that a crop covers.
          crop_aspect: least and greatest width / height of a crop.
          num_local: L, smaller crops an image besides; read where crops are cut.
          local_size: side of such a crop in pixels.
          local_area: least and greatest share of an image's area that it covers.
          host_index: this host, in [0, num_hosts).
          num_hosts: hosts that share each batch.
          num_threads: threads that decode and crop, 1 or more.
          prefetch: batches to make ahead; 0 makes each when it is asked for.
          with_labels: batches have their labels too; for a source that has some.

        Raises:
          UserError: where a batch is larger than the source or cannot be shared among the hosts,
            or where images that may differ in shape are not cropped.
          ValueError: where only one of num_views and crop_size is given.
        """
        if (num_views is None) != (crop_size is None):
            raise ValueError("num_views and crop_size belong together: give both or none")
        _check_batch(source, batch_size, num_hosts)
        if seed < 0:
            raise UserError(f"run.seed is {seed}: it must be 0 or more")
        if num_threads < 1:
            raise UserError(f"data.num_threads is {num_threads}: it must be 1 or more")
        if prefetch < 0:
            raise UserError(f"data.prefetch is {prefetch}: it must be 0 or more")
        if crop_size is None and source.image_shape is None:
            raise UserError(
                f"the images of {source.name!r} differ in shape and cannot form a batch: "
                'set data.crop="host"'
            )
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._num_views, self._crop_size = num_views, crop_size
        self._crop_area, self._crop_aspect = crop_area, crop_aspect
        self._num_local, self._local_size, self._local_area = num_local, local_size, local_area
        self._first_place = host_index * (batch_size // num_hosts)
        self._last_place = self._first_place + batch_size // num_hosts
        self._num_threads = num_threads
        self._prefetch = prefetch
        self._labels = source.labels if with_labels else None
        # Two, since batches are made ahead over the end of an epoch.
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
          Endless iterator of {"image": uint8 [B / num_hosts, H, W, C]}, with crops
          [B / num_hosts, V, S, S, C] and, where there are local ones, "local": the same of these;
          with labels "label": int32 [B / num_hosts].
          Reading it raises UserError where an image cannot be decoded.

        Raises:
          ValueError: where first_step is negative.
        """
        if first_step < 0:
            raise ValueError(f"first_step is {first_step}: it must be 0 or more")
        return self._generate(first_step)

    def _generate(self, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode")
        batches = iter(self._batches(pool))
        # A step is all there is to the position, so checkpoints need not know Grain's state.
        batches.set_state({"next_index": first_step})
        try:
            while True:
                yield next(batches)
        finally:
            batches.close()
            pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self, pool: ThreadPoolExecutor) -> grain.IterDataset:
        return (
            grain.MapDataset.range(_NO_END)
            .map(lambda step: self._batch(pool, step))
            .to_iter_dataset(
                grain.ReadOptions(
                    num_threads=min(_BATCH_THREADS, self._prefetch),
                    prefetch_buffer_size=self._prefetch,
                )
            )
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        # Grain's own shuffle and batch cost 17 microseconds an image, and make epoch 1 of a seed
        # epoch 0 of the next.
        seeds = np.random.SeedSequence(self._seed, spawn_key=(_SHUFFLE, epoch))
        return np.random.Generator(np.random.PCG64(seeds)).permutation(len(self._source))

    def _batch(self, pool: ThreadPoolExecutor, step: int) -> dict[str, np.ndarray]:
        """Returns this host's share of one step, [B / num_hosts, ...] each."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = step_of_epoch * self._batch_size
        order = self._order(epoch)[start : start + self._batch_size]
        places = range(self._first_place, self._last_place)
        chosen = order[places.start : places.stop]
        labels = {} if self._labels is None else {"label": self._labels[chosen]}
        if self._crop_size is None and isinstance(self._source, ArraySource):
            return {"image": self._source.images[chosen], **labels}
        read = self._crops if self._crop_size is not None else self._whole
        calls = [(read, step, place, int(order[place])) for place in places]
        return _gather(pool, self._num_threads, calls) | labels

    def _whole(self, step: int, place: int, i: int) -> dict[str, np.ndarray]:
        del step, place
        pixels = self._source.image(i)
        if pixels.shape != self._source.image_shape:
            raise UserError(
                f"image {i} of {self._source.name!r} is {pixels.shape} where others are "
                f'{self._source.image_shape}: set data.crop="host"'
            )
        return {"image": pixels}

    def _crops(self, step: int, place: int, i: int) -> dict[str, np.ndarray]:
        seeds = np.random.SeedSequence(self._seed, spawn_key=(_CROP, step, place))
        rng = np.random.Generator(np.random.PCG64(seeds))
        pixels = self._source.image(i)
        kinds = {"image": (self._num_views, self._crop_size, self._crop_area)}
        if self._num_local:
            kinds["local"] = (self._num_local, self._local_size, self._local_area)
        return {
            name: random_crops(
                pixels, rng, num_views=count, size=size, area=area, aspect=self._crop_aspect
            )
            for name, (count, size, area) in kinds.items()
        }


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
      batch_size: B, images a batch over all hosts, a multiple of their number.
      size: S: the short side is resized to S * 256 / 224 and the centre S x S cut. None leaves
        images as they are, for which they must have one shape.
      first: the image to begin with.
      host_index: this host, in [0, num_hosts).
      num_hosts: hosts that share each batch.

    Returns:
      Iterator of {"image": uint8 [B / num_hosts, H, W, C], "num_valid": int}: the last batch is
      filled up with zeros after its num_valid images, counted over all hosts.

    Raises:
      UserError: where images may differ in shape and no size is given.
    """
    if size is None and source.image_shape is None:
        raise UserError(
            f"the images of {source.name!r} differ in shape and cannot form a batch: "
            'set data.crop="host"'
        )
    return _eval_batches(source, batch_size, size, first, host_index, num_hosts)


def _eval_batches(
    source: Source,
    batch_size: int,
    size: int | None,
    first: int,
    host_index: int,
    num_hosts: int,
) -> Iterator[dict[str, np.ndarray | int]]:
    share = batch_size // num_hosts

    def read(i: int) -> np.ndarray:
        pixels = source.image(i)
        return pixels if size is None else centre_cut(pixels, size)

    def submit(start: int) -> list[Future[np.ndarray]]:
        start += host_index * share
        return [pool.submit(read, i) for i in range(start, min(start + share, len(source)))]

    pool = ThreadPoolExecutor(num_decode_threads(), thread_name_prefix="decode")
    try:
        ahead = submit(first)
        shape = read(0).shape  # of the last batch there may be nothing on this host
        for start in range(first, len(source), batch_size):
            images, ahead = [future.result() for future in ahead], submit(start + batch_size)
            batch = np.zeros((share, *shape), np.uint8)
            for place, pixels in enumerate(images):
                batch[place] = pixels
            yield {"image": batch, "num_valid": min(batch_size, len(source) - start)}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _check_batch(source: Source, batch_size: int, num_hosts: int) -> None:
    if batch_size < 1:
        raise UserError(f"data.batch_size is {batch_size}: it must be 1 or more")
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


def _gather(
    pool: ThreadPoolExecutor,
    num_threads: int,
    calls: list[tuple[Callable[..., dict[str, np.ndarray]], ...]],
) -> dict[str, np.ndarray]:
    """Returns the results of calls (function, *arguments), stacked by name in their order."""
    stacked = {}
    # In blocks: a program that ends waits for what is queued, and cannot queue more.
    block = 4 * num_threads
    for start in range(0, len(calls), block):
        futures = [pool.submit(*call) for call in calls[start : start + block]]
        for k, future in enumerate(futures, start):
            for name, pixels in future.result().items():
                if name not in stacked:
                    stacked[name] = np.empty((len(calls), *pixels.shape), np.uint8)
                stacked[name][k] = pixels
    return stacked
