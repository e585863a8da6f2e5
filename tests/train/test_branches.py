"""A batch in microbatches, and blocks that are recomputed, give the same step with less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.console import UsageError
from gsg_jax.devices.mesh import make_mesh
from gsg_jax.train.branches import run_branch
from gsg_jax.train.build import jit_step
from gsg_jax.train.state import init_state
from gsg_jax.train.step import train_step
from tests.small import images
from tests.train.steps import NO_BATCH_NORM, VIT, experiment_of, run

IN_FOUR = {"num_microbatches": 4}
extended = functools.partial(pytest.param, marks=pytest.mark.extended)


@functools.cache
def whole_step(method):
    return run(experiment_of(method, model=NO_BATCH_NORM, **CASES[method]))


def assert_close(found, expected):
    """Equal but for rounding, which is relative to a leaf's largest entry."""

    def close(a, b):
        limit = 5e-5 * max(1, np.max(np.abs(b), initial=0))
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)

    jax.tree.map(close, found, expected)


# Losses over the whole batch; an EMA target, an online one, selected sources, local views, CutMix,
# and methods with memory.
CASES = {
    "byol_gsg": {},
    "barlow_twins": {},
    "unigrad": {"views": {"num_local": 2, "local_size": 8}},
    "byol": {"views": {"cutmix_probability": 1.0}},
    "simsiam_gsg": {"sources": "selected", "pairing": "halves", "num_views": 2},
    "moco_v2": {},
}


@pytest.mark.parametrize("method", ["byol_gsg", *(extended(name) for name in list(CASES)[1:])])
def test_without_batch_norm_microbatches_give_the_whole_batchs_step(method):
    parts = experiment_of(method, model=NO_BATCH_NORM, optim=IN_FOUR, **CASES[method])
    assert_close(run(parts), whole_step(method))


@pytest.mark.parametrize("model", [NO_BATCH_NORM, extended(VIT)])
def test_recomputed_blocks_give_the_same_step(model):
    anew = experiment_of("byol_gsg", model={**model, "recompute": True})
    state = jax.eval_shape(functools.partial(init_state, anew, 1))
    text = str(jax.make_jaxpr(functools.partial(train_step, anew))(state, images()))
    assert "checkpoint" in text or "remat" in text  # not a comparison of a step with itself
    kept = whole_step("byol_gsg")
    if model is not NO_BATCH_NORM:
        kept = run(experiment_of("byol_gsg", model=model))
    (states, (log,)), (expected, (expected_log,)) = run(anew), kept
    log, expected_log = ({**one, "embedding_rank": 0} for one in (log, expected_log))
    assert_close((states, log), (expected, expected_log))


def test_a_part_is_every_nth_image_and_has_batch_statistics_of_its_own():
    experiment = experiment_of("byol")
    num_views = experiment.num_views
    state = jax.jit(functools.partial(init_state, experiment, 1))()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    views = jax.random.normal(jax.random.key(1), (12, num_views, 12, 9, 1))
    run = jax.jit(
        functools.partial(run_branch, experiment.online, num_microbatches=3), static_argnums=1
    )
    (h, z, p), batch_stats = run(views.reshape(-1, 12, 9, 1), num_views, variables)

    embed = jax.jit(
        functools.partial(experiment.online.backbone.apply, train=True, mutable=["batch_stats"])
    )
    of_backbone = {k: v["backbone"] for k, v in variables.items()}
    expected_h, statistics = np.zeros((num_views, 12, h.shape[-1])), []
    for part in range(3):
        of_part, updates = embed(of_backbone, views[part::3].reshape(-1, 12, 9, 1))
        expected_h[:, part::3] = of_part.reshape(4, num_views, -1).swapaxes(0, 1)
        statistics.append(updates["batch_stats"])
    mean = jax.tree.map(lambda *parts: sum(parts) / 3, *statistics)
    chex.assert_trees_all_close(h, expected_h.astype(np.float32), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(batch_stats["backbone"], mean, rtol=1e-4, atol=1e-6)

    # The heads' BatchNorm sees the whole batch.
    rows = jnp.asarray(expected_h, jnp.float32).swapaxes(0, 1).reshape(-1, h.shape[-1])
    heads = functools.partial(experiment.online.apply, train=True, mutable=["batch_stats"])
    of_heads, _ = jax.jit(functools.partial(heads, method="heads"))(variables, rows)
    for found, expected in zip((z, p), of_heads, strict=True):
        expected = expected.reshape(12, num_views, -1).swapaxes(0, 1)
        chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.extended
def test_microbatches_on_eight_devices_equal_those_on_one():
    experiment = experiment_of("byol_gsg", optim={"num_microbatches": 2})
    assert_close(run(experiment, num_devices=8), run(experiment))


@pytest.mark.extended
@pytest.mark.parametrize("saving", [{"optim": IN_FOUR}, {"model": {"recompute": True}}])
def test_both_save_memory(saving):
    mesh = make_mesh(64)

    def temporary(model=(), **saving):
        model = {"backbone": "resnet34", "width": 16, **dict(model)}
        experiment = experiment_of("simsiam", model=model, views={"size": 32}, **saving)
        state = jax.eval_shape(lambda: init_state(experiment, 1))
        program = jit_step(experiment, mesh).lower(state, images(64)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(**saving) < 0.75 * temporary()


@pytest.mark.parametrize(("number", "nearest"), [(3, 2), (16, 8), (7, 8)])
def test_microbatches_that_do_not_divide_the_batch_are_refused(number, nearest):
    with pytest.raises(UsageError, match=f"divide data.batch_size, 16.*num_microbatches={nearest}"):
        experiment_of("simsiam", optim={"num_microbatches": number})
