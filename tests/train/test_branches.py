"""A batch in microbatches, and blocks computed anew, are the same step with less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.config.check import check_pretraining
from gsg_jax.console import UsageError
from gsg_jax.devices import mesh as meshes
from gsg_jax.train.branches import run_branch
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.state import init_state
from gsg_jax.train.step import train_step
from tests.small import images, small_config

NO_BATCH_NORM = {"norm": "group", "norm_groups": 4, "head_norm": "layer"}


def experiment_of(method, *, microbatches=1, model=(), views=(), **method_overrides):
    config = small_config(method, **method_overrides)
    config.model.update(dict(model))
    config.views.update(dict(views))
    config.optim.num_microbatches = microbatches
    check_pretraining(config)
    return build_experiment(config, num_steps=20, steps_per_epoch=5)


def one_step(experiment):
    state = init_state(experiment, 1)
    return jax.jit(functools.partial(train_step, experiment))(state, images())


def assert_close(found, expected):
    """Equal but for rounding, which is of a leaf's largest entry."""
    limit = 5e-5 * max(1, np.max(np.abs(expected), initial=0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


# Losses that join the whole batch; an EMA target, an online one, selected sources, local views,
# CutMix, and a method with memory.
CASES = {
    "byol_gsg": {},
    "barlow_twins": {},
    "unigrad": {"views": {"num_local": 2, "local_size": 8}},
    "byol": {"views": {"cutmix_probability": 1.0}},
    "simsiam_gsg": {"sources": "selected", "pairing": "halves", "num_views": 2},
    "moco_v2": {},
}


@pytest.mark.parametrize("method", CASES)
def test_without_batch_norm_microbatches_give_the_whole_batchs_step(method):
    case = CASES[method] | {"model": NO_BATCH_NORM}
    whole, whole_log = one_step(experiment_of(method, **case))
    parts, parts_log = one_step(experiment_of(method, microbatches=4, **case))
    jax.tree.map(assert_close, (parts, parts_log), (whole, whole_log))


def test_a_part_is_every_nth_image_and_has_batch_statistics_of_its_own():
    experiment = experiment_of("byol")
    num_views = experiment.num_views
    state = init_state(experiment, 1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    views = jax.random.normal(jax.random.key(1), (12, num_views, 12, 9, 1))
    run = functools.partial(run_branch, experiment.online, num_microbatches=3)
    (h, z, p), batch_stats = run(views.reshape(-1, 12, 9, 1), num_views, variables)

    backbone = experiment.online.backbone
    of_backbone = {k: v["backbone"] for k, v in variables.items()}
    expected_h, statistics = np.zeros((num_views, 12, h.shape[-1])), []
    for part in range(3):
        rows = views[part::3].reshape(-1, 12, 9, 1)
        of_part, updates = backbone.apply(of_backbone, rows, train=True, mutable=["batch_stats"])
        expected_h[:, part::3] = of_part.reshape(4, num_views, -1).swapaxes(0, 1)
        statistics.append(updates["batch_stats"])
    mean = jax.tree.map(lambda *parts: sum(parts) / 3, *statistics)
    chex.assert_trees_all_close(h, expected_h.astype(np.float32), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(batch_stats["backbone"], mean, rtol=1e-4, atol=1e-6)

    # The heads' BatchNorm sees the whole batch.
    rows = jnp.asarray(expected_h, jnp.float32).swapaxes(0, 1).reshape(-1, h.shape[-1])
    of_heads, _ = experiment.online.apply(
        variables, rows, train=True, mutable=["batch_stats"], method="heads"
    )
    for found, expected in zip((z, p), of_heads, strict=True):
        expected = expected.reshape(12, num_views, -1).swapaxes(0, 1)
        chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", [{}, {"backbone": "vit_micro", "patch_size": 4}])
def test_blocks_computed_anew_give_the_same_step(model):
    kept = experiment_of("byol_gsg", model=model)
    anew = experiment_of("byol_gsg", model=model | {"recompute": True})
    # Counted in the program itself, so that the comparison is not of one thing with itself.
    state = init_state(anew, 1)
    text = str(jax.make_jaxpr(functools.partial(train_step, anew))(state, images()))
    assert "checkpoint" in text or "remat" in text
    (state, log), (expected, expected_log) = one_step(anew), one_step(kept)
    log, expected_log = ({**one, "embedding_rank": 0} for one in (log, expected_log))
    jax.tree.map(assert_close, (state, log), (expected, expected_log))


def test_microbatches_on_eight_devices_equal_those_on_one():
    experiment = experiment_of("byol_gsg", microbatches=2)
    mesh = meshes.make_mesh(16)
    assert mesh.devices.size == 8
    state = jax.device_put(init_state(experiment, 1), meshes.replicated(mesh))
    found = jit_step(experiment, mesh)(state, meshes.global_batch(mesh, images()))
    jax.tree.map(assert_close, found, one_step(experiment))


@pytest.mark.parametrize("saving", [{"microbatches": 4}, {"model": {"recompute": True}}])
def test_both_save_memory(saving):
    mesh = meshes.make_mesh(64)

    def temporary(**saving):
        model = {"backbone": "resnet34", "width": 16} | saving.pop("model", {})
        experiment = experiment_of("simsiam", model=model, views={"size": 32}, **saving)
        state = jax.eval_shape(lambda: init_state(experiment, 1))
        program = jit_step(experiment, mesh).lower(state, images(64)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(**saving) < 0.75 * temporary()


@pytest.mark.parametrize(("number", "nearest"), [(3, 2), (16, 8), (7, 8)])
def test_microbatches_that_do_not_divide_the_batch_are_told(number, nearest):
    with pytest.raises(UsageError, match=f"divide data.batch_size, 16.*num_microbatches={nearest}"):
        experiment_of("simsiam", microbatches=number)
