"""The batch and the state split over devices give the numbers of one; wrong meshes are reported."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, resolve
from gsg_jax.console import UserError
from gsg_jax.devices import mesh as meshes
from gsg_jax.devices.mesh import global_batch, make_mesh, sharded, whole
from gsg_jax.run.checkpoint import Checkpoints, state_digest
from gsg_jax.train import loop as train
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.state import init_state
from tests.runs import done, stop_after, tiny
from tests.small import images as some_images
from tests.small import small_experiment


@pytest.mark.parametrize(
    ("batch_size", "fsdp", "said"),
    [
        (16, 3, "--config.run.fsdp=3: does not divide the 8 devices; take one of [1, 2, 4, 8]"),
        (16, 16, "--config.run.fsdp=16: does not divide"),
        (12, 2, "data.batch_size is 12, not divisible by the 8 devices: set "
         "--config.data.batch_size=8 or 16"),
        (4, 1, "data.batch_size is 4, not divisible by the 8 devices: set "
         "--config.data.batch_size=8"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_is_reported_with_the_fix(batch_size, fsdp, said):
    with pytest.raises(UserError) as error:
        make_mesh(batch_size, fsdp)
    assert str(error.value).startswith(said) and not str(error.value).endswith("8 or 8")


def test_the_longest_axis_that_divides_is_split():
    expected = {
        (3, 8, 12): PartitionSpec(None, None, "fsdp"),
        (4, 4): PartitionSpec("fsdp", None),
        (6, 16): PartitionSpec(None, "fsdp"),
        (0, 4): PartitionSpec(None, "fsdp"),
        **dict.fromkeys([(7,), (), (8,)], PartitionSpec()),
    }
    tree = {shape: jax.ShapeDtypeStruct(shape, jnp.float32) for shape in expected}
    specs = {shape: found.spec for shape, found in sharded(make_mesh(16, 4), tree).items()}
    assert specs == expected


def start(experiment, mesh):
    """The first state on a mesh, and the step."""
    init = functools.partial(init_state, experiment, 1)
    shapes = jax.eval_shape(init)
    state = jax.jit(init, out_shardings=sharded(mesh, shapes))()
    return state, jit_step(experiment, mesh, shapes)


def trained(experiment, mesh, num_steps):
    state, step = start(experiment, mesh)
    losses = []
    for n in range(num_steps):
        state, metrics = step(state, global_batch(mesh, some_images(seed=n)))
        losses.append(float(metrics["loss"]))
    return state, losses


def bytes_on_a_device(state):
    device = jax.devices()[3]
    shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.parametrize(
    ("name", "fsdp"),
    [
        ("simsiam_gsg", 2),
        pytest.param("simsiam_gsg", 8, marks=pytest.mark.extended),
        pytest.param("moco_v2", 2, marks=pytest.mark.extended),  # has a memory
    ],
)
def test_eight_devices_with_the_state_in_shards_train_as_one(name, fsdp):
    experiment = small_experiment(name)
    one = meshes.mesh_of(jax.devices()[:1], 1)
    (state, losses), (eight, eights) = (
        trained(experiment, mesh, num_steps=3) for mesh in (one, make_mesh(16, fsdp))
    )
    np.testing.assert_allclose(losses, eights, atol=1e-5)
    # Sums in another order, by a learning rate of 2.
    chex.assert_trees_all_close(jax.device_get(state), jax.device_get(eight), atol=1e-4)
    first, _ = start(experiment, make_mesh(16, fsdp))
    assert bytes_on_a_device(eight) == bytes_on_a_device(first), "the state moved"
    # Vectors are not split, and make up a good part of so small a network.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert bytes_on_a_device(eight) < 0.65 * size


def test_two_shards_of_the_papers_network_are_half_of_its_state():
    config = load_config("configs/byol_gsg.py:imagenet")
    check_pretraining(config)
    experiment = build_experiment(resolve(config), num_steps=10, steps_per_epoch=5)
    state = jax.eval_shape(functools.partial(init_state, experiment, 3))
    shardings = jax.tree.leaves(sharded(make_mesh(16, 2), state))
    total = part = 0
    for leaf, sharding in zip(jax.tree.leaves(state), shardings, strict=True):
        total += leaf.size * leaf.dtype.itemsize
        part += math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    assert total > 2e8 and 0.5 <= part / total < 0.502


def test_shards_have_the_digest_of_the_whole_and_are_restored_onto_another_mesh(tmp_path):
    experiment, mesh = small_experiment("byol"), make_mesh(16, 4)
    state, _ = start(experiment, mesh)
    like, _ = start(experiment, make_mesh(16))
    gathered = whole(mesh, state)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(gathered))
    assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert state_digest(gathered) == state_digest(state) == state_digest(like)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, None)
        back = checkpoints.restore(0, like)
    assert state_digest(back) == state_digest(state)
    assert bytes_on_a_device(back) == bytes_on_a_device(like) != bytes_on_a_device(state)


@pytest.mark.extended
def test_a_run_in_shards_resumes_with_a_whole_state(images, tmp_path, monkeypatch):
    more = ["--config.eval.knn_every_epochs=0", "--config.run.num_steps=6"]
    whole, _ = done(*tiny("simsiam_gsg", images, tmp_path / "whole", *more))
    monkeypatch.setattr(train, "stop_signals", stop_after)
    for fsdp, step in ((8, 3), (1, 6)):
        flags = tiny("simsiam_gsg", images, tmp_path / "mixed", *more)
        last, _ = done(*flags, f"--config.run.fsdp={fsdp}")
        assert last["step"] == step
    np.testing.assert_allclose(last["loss"], whole["loss"], atol=1e-5)
