"""The passes of both branches: microbatches, recomputed blocks, local views, patches, targets."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.console import UsageError
from gsg_jax.devices.mesh import make_mesh
from gsg_jax.methods import TARGETS
from gsg_jax.methods.method import Outputs
from gsg_jax.train.branches import online_pass, run_branch, target_pass, with_targets
from gsg_jax.train.build import jit_step
from gsg_jax.train.figures import FIGURES, outputs_of_projections
from gsg_jax.train.state import init_state
from gsg_jax.train.views import draw_views
from tests.small import images
from tests.train.steps import NO_BATCH_NORM, VIT, compiled, experiment_of, extended, run, traced

IN_FOUR = {"num_microbatches": 4}


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
    text = str(traced(anew))
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


def passes(experiment, state, key=0):
    """Outputs of a step's passes before any update, and both branches' running statistics."""

    def both(state):
        views = draw_views(experiment, jnp.asarray(images()), jax.random.key(key))
        z_target, of_target = target_pass(experiment, state, views.whole)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        outputs, of_online = online_pass(
            experiment, variables, views, z_target, jax.random.key(key + 1)
        )
        again = outputs_of_projections(experiment, state, outputs, outputs.z)
        return outputs, of_online, of_target, again

    return compiled(jax.jit(both), state)(state)


def with_views(method, views, **choices):
    """A small experiment with local views of 8 pixels, or patches."""
    views = {"local_size": 8, "local_crop_area": (0.1, 0.5), **views}
    return experiment_of(method, views=views, **choices)


@pytest.mark.parametrize(
    ("method", "target", "views"),
    [
        ("simsiam", "auto", {"cutmix_probability": 1.0}),
        ("byol_gsg", "auto", {"num_local": 3}),
        extended("unigrad", "ema_positive", {"cutmix_probability": 1.0}),
    ],
)
def test_local_views_and_patches_leave_targets_and_statistics_to_whole_global_views(
    method, target, views
):
    plain, experiment = (with_views(method, v, target=target) for v in ({}, views))
    state = jax.jit(functools.partial(init_state, plain, 1))()
    # Weights of its own, so that a mistaken branch shows.
    state = state.replace(target_params=jax.tree.map(lambda x: x + 0.05, state.target_params))
    whole, whole_stats, whole_target_stats, _ = passes(plain, state)
    outputs, stats, target_stats, again = passes(experiment, state)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)
    close(outputs.z_target, whole.z_target)
    close(outputs.negatives, whole.negatives)
    close(target_stats, whole_target_stats)
    assert (plain.target_branch == "online") != bool(target_stats)
    if experiment.views.num_local:
        chex.assert_shape(outputs.h, (2 + 3, 16, 8))
        close((outputs.z[:2], stats), (whole.z, whole_stats))
    else:
        assert np.abs(outputs.z - whole.z).max() > 1e-3  # what the patches cover
    # What the gradient's inspector makes of the step's projections is what the step made.
    for name in ("p", "z_target", "negatives"):
        ours, theirs = getattr(again, name), getattr(outputs, name)
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)


def test_targets_and_negatives_come_from_the_branches_that_the_config_names():
    outputs = Outputs(h=0, z="online", p=0, z_target=None)
    found = {}
    for target in TARGETS:
        experiment = experiment_of("unigrad", target=target)
        assert experiment.has_target_pass == (target != "online")
        z_ema = None if target == "online" else "ema"
        found[target] = with_targets(experiment, outputs._replace(z_target=z_ema), "online")
    assert {target: (o.z_target, o.negatives) for target, o in found.items()} == {
        "online": ("online", "online"),
        "ema": ("ema", "ema"),
        "ema_positive": ("ema", "online"),
    }


SELECTED = {"sources": "selected", "pairing": "halves", "num_views": 2}
CUTMIX = {"cutmix_probability": 1.0}


@pytest.mark.extended
@pytest.mark.parametrize(
    ("method", "choices", "views"),
    [
        ("simsiam", {}, CUTMIX),
        ("byol_gsg", {}, {"num_local": 3}),
        ("unigrad", {"target": "ema_positive"}, CUTMIX),
        ("byol_gsg", {"optim": {"num_microbatches": 2}}, {}),
        ("byol", {"model": {**VIT, "drop_path": 0.9}}, {}),  # who skips follows the global batch
        ("byol_gsg", SELECTED, {}),
        ("simsiam_gsg", SELECTED, {"num_local": 2}),
        ("simsiam_gsg", SELECTED, CUTMIX),
    ],
)
def test_a_variant_of_the_step_is_finite_and_the_same_on_eight_devices(method, choices, views):
    figures = {"evaluation": {"inspect_gradients": True, "online_linear": views != CUTMIX}}
    choices = choices | {"optim": {"learning_rate": 0.5, **choices.get("optim", {})}}
    experiment = with_views(method, views, **choices, **figures)
    (before, one), (one_log,) = run(experiment)
    (_, eight), (eight_log,) = run(experiment, num_devices=8)
    for group in ("params", "target_params", "batch_stats", "memory"):
        ours, theirs = getattr(eight, group), getattr(one, group)
        chex.assert_trees_all_close(ours, theirs, rtol=0, atol=2e-5)
    assert set(one_log) >= set(FIGURES) and 0 <= one_log.get("online_linear_top1", 0) <= 1
    chex.assert_tree_all_finite(one_log)
    chex.assert_trees_all_close(eight_log, one_log, rtol=1e-3, atol=1e-4)
    old, new = (state.batch_stats["projector"]["bn3"]["mean"] for state in (before, one))
    assert not np.array_equal(old, new)


def test_four_views_take_four_running_statistics_updates():
    experiment = experiment_of("simsiam_gsg", pairing="permutation", num_views=4)
    state = jax.jit(functools.partial(init_state, experiment, 1))()
    # What is left of a start 100 higher says how many updates of momentum 0.1 there were.
    higher = state.replace(batch_stats=jax.tree.map(lambda x: x + 100, state.batch_stats))
    means = [passes(experiment, start)[1]["projector"]["bn3"]["mean"] for start in (higher, state)]
    np.testing.assert_allclose((means[0] - means[1]) / 100, 0.9**4, rtol=1e-3)
