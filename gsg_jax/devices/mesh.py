"""The device mesh: where the batch and the state lie."""

import os
import re
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gsg_jax.console import UserError


def give_fake_devices_threads() -> None:
    """Gives fake CPU devices enough threads; to be called before JAX knows its devices.

    XLA runs independent sums over the devices at the same time, each with one thread per device.
    Its pool has as many threads as devices, and it aborts if two sums need more.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if fakes := re.search(r"xla_force_host_platform_device_count=(\d+)", flags):
        os.environ.setdefault("NPROC", str(8 * int(fakes[1])))


def make_mesh(batch_size: int, fsdp: int = 1) -> Mesh:
    """Returns a mesh of all devices of all hosts, with the axes "data" and "fsdp".

    The batch is split over all devices. The train state is split over `fsdp` neighbours, which hold
    one copy of it together.

    Args:
      batch_size: images per step over all devices.
      fsdp: devices that share a copy of the state; 1 gives each device a copy of its own.

    Raises:
      UserError: if the devices do not divide the batch, or `fsdp` does not divide the devices.
    """
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise UserError(
            f"--config.run.fsdp={fsdp}: does not divide the {count} devices; take one of {fitting}"
        )
    if remainder := batch_size % count:
        lower = batch_size - remainder
        nearest = f"{lower} or {lower + count}" if lower else count
        raise UserError(
            f"data.batch_size is {batch_size}, not divisible by the {count} devices: "
            f"set --config.data.batch_size={nearest}"
        )
    return mesh_of(jax.devices(), fsdp)


def all_devices() -> Mesh:
    """Returns a mesh of all devices of all hosts, each with a copy of the state."""
    return mesh_of(jax.devices(), 1)


def is_cpu(mesh: Mesh) -> bool:
    """Whether the devices of the mesh are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def mesh_of(devices: list[jax.Device], fsdp: int) -> Mesh:
    """Returns a mesh of devices, which may be absent and only described."""
    # The devices of a host are neighbours, because its share of the batch is one block.
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    devices = np.array(by_host).reshape(-1, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh, state: Any) -> Any:
    """Returns the shardings of a train state, a tree like `state`, which is arrays or shapes.

    A matrix or kernel is split over "fsdp" along the longest axis that "fsdp" divides; if there is
    none, it stays whole. Vectors stay whole: they are a thousandth of the state, and if BatchNorm's
    statistics were split, XLA would compute the batch's statistics in parts and gather them.
    """
    parts = mesh.shape.get("fsdp", 1)

    def of_leaf(leaf) -> NamedSharding:
        fitting = [n for n, size in enumerate(leaf.shape) if size and size % parts == 0]
        if parts == 1 or leaf.ndim < 2 or not fitting:
            return replicated(mesh)
        longest = max(fitting, key=lambda n: leaf.shape[n])
        axes = ["fsdp" if n == longest else None for n in range(leaf.ndim)]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(of_leaf, state)


def by_image(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def global_batch(mesh: Mesh, images: Any) -> Any:
    """Joins the hosts' shares [B / hosts, ...], or tuples of them, to [B, ...] split by image."""
    place = partial(jax.make_array_from_process_local_data, by_image(mesh))
    return jax.tree.map(place, images)


def whole(mesh: Mesh, tree: Any) -> Any:
    """Returns a tree whose arrays every device holds whole; free if they are whole already."""
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def local_rows(x: jax.Array) -> np.ndarray:
    """Returns this host's rows of an array sharded by image, [N / hosts, ...]."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def wait_for_hosts(what: str) -> None:
    """Waits until every host gets here; `what` names the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def of_all_hosts(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of all hosts, in the hosts' order: [n, ...] to [n x hosts, ...]."""
    if jax.process_count() == 1:
        return rows
    return multihost_utils.process_allgather(rows, tiled=True)
