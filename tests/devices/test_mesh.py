"""The state lies whole on every device, or in shards of the same numbers; wrong meshes are told."""

import functools
import itertools
import math
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, resolve
from gsg_jax.console import UserError
from gsg_jax.devices import mesh as meshes
from gsg_jax.run.checkpoint import Checkpoints, state_digest
from gsg_jax.train import loop as train
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.state import init_state
from tests.runs import call, figures, tiny, write_images
from tests.small import images, small_experiment


@pytest.mark.parametrize(
    ("batch_size", "fsdp", "said"),
    [
        (16, 3, "--config.run.fsdp=3: does not divide the 8 devices; take one of [1, 2, 4, 8]"),
        (16, 16, "--config.run.fsdp=16: does not divide"),
        (12, 2, "data.batch_size is 12, not divisible by the 8 devices: set "
         "--config.data.batch_size=8 or 16"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_is_told_with_the_mend(batch_size, fsdp, said):
    with pytest.raises(UserError) as error:
        meshes.make_mesh(batch_size, fsdp)
    assert str(error.value).startswith(said)


def test_the_longest_axis_that_divides_is_split():
    mesh = meshes.make_mesh(16, 4)
    shapes = {
        "a": (3, 8, 12),
        "b": (7,),
        "c": (),
        "d": (4, 4),
        "e": (6, 16),
        "f": (0, 4),
        "g": (8,),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: found.spec for name, found in meshes.sharded(mesh, tree).items()}
    assert specs == {
        "a": PartitionSpec(None, None, "fsdp"),
        "b": PartitionSpec(),
        "c": PartitionSpec(),
        "d": PartitionSpec("fsdp", None),
        "e": PartitionSpec(None, "fsdp"),
        "f": PartitionSpec(None, "fsdp"),
        "g": PartitionSpec(),
    }


def state_and_step(experiment, fsdp):
    mesh = meshes.make_mesh(16, fsdp)
    init = functools.partial(init_state, experiment, 1)
    shapes = jax.eval_shape(init)
    state = jax.jit(init, out_shardings=meshes.sharded(mesh, shapes))()
    return mesh, state, jit_step(experiment, mesh, shapes)


def bytes_on_a_device(state):
    device = jax.devices()[3]
    shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.parametrize(
    ("name", "fsdp"),
    [
        ("simsiam_gsg", 2),
        pytest.param("simsiam_gsg", 8, marks=pytest.mark.slow),
        pytest.param("byol_gsg", 2, marks=pytest.mark.slow),
        pytest.param("moco_v2", 2, marks=pytest.mark.slow),
    ],
)
def test_a_state_in_shards_trains_as_a_whole_one_in_a_part_of_the_memory(name, fsdp):
    experiment, sizes, losses, states = small_experiment(name), [], [], []
    for parts in (1, fsdp):
        mesh, state, step = state_and_step(experiment, parts)
        sizes.append(bytes_on_a_device(state))
        losses.append([])
        for n in range(5):
            state, metrics = step(state, meshes.global_batch(mesh, images(seed=n)))
            losses[-1].append(float(metrics["loss"]))
        assert bytes_on_a_device(state) == sizes[-1], "the state moved"
        states.append(jax.device_get(state))
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *states)
    assert sizes[1] < 0.65 * sizes[0]  # of so small a network vectors are a good part


@pytest.mark.parametrize("name", ["simsiam_gsg", "byol_gsg", "moco_v2"])
def test_two_shards_of_the_papers_network_are_half_of_its_state(name):
    config = load_config(f"configs/{name}.py:imagenet")
    check_pretraining(config)
    experiment = build_experiment(resolve(config), num_steps=10, steps_per_epoch=5)
    state = jax.eval_shape(functools.partial(init_state, experiment, 3))
    shardings = jax.tree.leaves(meshes.sharded(meshes.make_mesh(16, 2), state))
    whole = part = 0
    for leaf, sharding in zip(jax.tree.leaves(state), shardings, strict=True):
        whole += leaf.size * leaf.dtype.itemsize
        part += math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    assert whole > 2e8 and 0.5 <= part / whole < 0.502


def test_shards_become_whole_and_have_the_digest_of_the_whole():
    experiment = small_experiment("simsiam")
    mesh, state, _ = state_and_step(experiment, 4)
    _, same, _ = state_and_step(experiment, 1)
    gathered = meshes.whole(mesh, state)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(gathered))
    assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert state_digest(gathered) == state_digest(state) == state_digest(same)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (8, 1), (2, 4)])
def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path, before, after):
    experiment = small_experiment("byol")
    _, state, _ = state_and_step(experiment, before)
    _, like, _ = state_and_step(experiment, after)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, None)
        back = checkpoints.restore(0, like)
    assert state_digest(back) == state_digest(state)
    assert bytes_on_a_device(back) == bytes_on_a_device(like) != bytes_on_a_device(state)


@pytest.mark.slow
def test_a_run_in_shards_goes_on_with_a_whole_state(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images")
    more = ["--config.eval.knn_every_epochs=0", "--config.run.num_steps=6"]
    losses = []
    for name, parts in (("whole", (1, 1)), ("mixed", (8, 1))):
        for fsdp in parts:
            monkeypatch.setattr(train, "stop_signals", lambda: nullcontext(after_three_steps()))
            flags = tiny("simsiam_gsg", folder, tmp_path / name, *more)
            status, out, err = call(*flags, f"--config.run.fsdp={fsdp}")
            assert status == 0, err
        assert figures(out)["step"] == 6
        losses.append(figures(out)["loss"])
    np.testing.assert_allclose(losses, losses[0], atol=1e-5)


def after_three_steps():
    """A signal to stop that comes when it has been asked for three times."""
    asked = itertools.count()
    return lambda: next(asked) >= 3
