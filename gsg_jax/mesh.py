"""The device mesh: where the batch and the state lie."""

import os
import re
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gsg_jax.errors import UserError


def give_fake_devices_threads() -> None:
    """Lets fake CPU devices wait for one another; to be called before JAX knows its devices.

    XLA runs sums over the devices that do not need each other at once, each in a thread a device,
    and aborts where its pool, of as many threads as devices, is too small for two of them.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if fakes := re.search(r"xla_force_host_platform_device_count=(\d+)", flags):
        os.environ.setdefault("NPROC", str(8 * int(fakes[1])))


def make_mesh(batch_size: int) -> Mesh:
    """A mesh of all devices of all hosts, with the one axis "data".

    Args:
      batch_size: images a step over all devices.

    Returns:
      The mesh.

    Raises:
      UserError: where the batch does not divide evenly over the devices.
    """
    mesh = all_devices()
    devices = mesh.devices
    if remainder := batch_size % devices.size:
        lower = batch_size - remainder
        nearest = lower if lower else devices.size
        raise UserError(
            f"data.batch_size is {batch_size}, not divisible by the {devices.size} devices: "
            f"set --config.data.batch_size={nearest} or {lower + devices.size}"
        )
    return mesh


def all_devices() -> Mesh:
    """A mesh of all devices of all hosts, with the one axis "data"."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: the train state."""
    return NamedSharding(mesh, PartitionSpec())


def by_image(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def global_batch(mesh: Mesh, images: Any) -> Any:
    """Makes one global array of the shares that the hosts hold.

    Args:
      mesh: of make_mesh.
      images: this host's share of the batch, [B / hosts, ...], or a tuple of such.

    Returns:
      The global batch [B, ...], sharded over the devices by image; a tuple of a tuple.
    """
    place = partial(jax.make_array_from_process_local_data, by_image(mesh))
    return jax.tree.map(place, images)


def local_rows(x: jax.Array) -> np.ndarray:
    """This host's rows of an array that is sharded by image, [N / hosts, ...]."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def wait_for_hosts(what: str) -> None:
    """Waits until every host has come as far; `what` names the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def of_all_hosts(rows: np.ndarray) -> np.ndarray:
    """Joins the rows that the hosts hold, in their order: [n, ...] to [n x hosts, ...]."""
    if jax.process_count() == 1:
        return rows
    return multihost_utils.process_allgather(rows, tiled=True)
