"""The device mesh: where the batch and the state lie."""

import os
import re
from functools import partial
from typing import Any

import jax
import numpy as np
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
    devices = np.array(jax.devices())
    if remainder := batch_size % devices.size:
        lower = batch_size - remainder
        nearest = lower if lower else devices.size
        raise UserError(
            f"data.batch_size is {batch_size}, not divisible by the {devices.size} devices: "
            f"set --config.data.batch_size={nearest} or {lower + devices.size}"
        )
    return Mesh(devices, ("data",))


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
