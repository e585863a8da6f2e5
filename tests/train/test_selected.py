"""Selected sources: the online branch sees only the views that get gradient, to the same effect."""

import collections
import dataclasses
import functools
import re

import chex
import jax
import numpy as np
import optax
import pytest

from gsg_jax.train.state import init_state
from gsg_jax.train.step import train_step
from tests.small import images
from tests.train.steps import NO_BATCH_NORM, experiment_of, run


def selecting(method, sources, pairing, **changes):
    num_views = 4 if pairing == "permutation" else 2
    return experiment_of(method, pairing=pairing, num_views=num_views, sources=sources, **changes)


@pytest.mark.parametrize(
    ("method", "pairing"),
    [
        ("simsiam_gsg", "permutation"),
        pytest.param("byol_gsg", "permutation", marks=pytest.mark.extended),
        pytest.param("byol_gsg", "halves", marks=pytest.mark.extended),
    ],
)
def test_without_batchnorm_selected_sources_have_the_gradient_of_all(method, pairing):
    found = {}
    for sources in ("all", "selected"):
        experiment = selecting(method, sources, pairing, model=NO_BATCH_NORM)
        kept = dataclasses.replace(experiment, optimizer=optax.sgd(1.0))  # the update is -gradient
        states, (log,) = run(kept)
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[0].params, states[1].params)
        assert max(jax.tree.leaves(moved)) > 1e-3
        del log["projection_std"], log["embedding_rank"]  # of the views that the branch has seen
        found[sources] = states[1].params, states[1].target_params, log
    chex.assert_trees_all_close(found["selected"], found["all"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pairing", "num_sources"), [("permutation", 2), ("halves", 1)])
def test_the_online_branch_runs_on_the_selected_views_alone(pairing, num_sources):
    sizes = {}
    for sources in ("all", "selected"):
        experiment = selecting("byol_gsg", sources, pairing)
        state = jax.eval_shape(functools.partial(init_state, experiment, 1))
        text = str(jax.make_jaxpr(functools.partial(train_step, experiment))(state, images()))
        rows = re.findall(r"f32\[(\d+),6,6,8\] = conv_general_dilated", text)
        sizes[sources] = collections.Counter(int(count) for count in rows)
    # Three convolutions forward in each branch, two of them back to their inputs in the online one.
    num_rows = 16 * experiment.num_views
    assert sizes["all"] == {num_rows: 8}
    assert sizes["selected"] == {num_rows: 3, 16 * num_sources: 5}


@pytest.mark.extended
def test_selected_sources_go_with_local_views_a_probe_and_the_gradients_figures():
    experiment = selecting(
        "simsiam_gsg",
        "selected",
        "halves",
        views={"num_local": 2, "local_size": 12},
        evaluation={"inspect_gradients": True, "online_linear": True},
    )
    (before, after), (log,) = run(experiment)
    chex.assert_tree_all_finite(log)
    assert 0 <= log["online_linear_top1"] <= 1
    # An online target's running statistics are those of the selected views.
    for old, new in zip(
        jax.tree.leaves(before.batch_stats["projector"]["bn3"]),
        jax.tree.leaves(after.batch_stats["projector"]["bn3"]),
        strict=True,
    ):
        assert not np.array_equal(old, new)
    assert not after.target_batch_stats


@pytest.mark.extended
@pytest.mark.parametrize("method", ["byol_gsg", "simsiam_gsg"])
def test_a_step_on_selected_sources_on_eight_devices_equals_one_device(method):
    experiment = selecting(method, "selected", "halves")
    (_, *states), logs = run(experiment, 3, num_devices=8)
    (_, *expected_states), expected_logs = run(experiment, 3)
    chex.assert_trees_all_close(logs, expected_logs, rtol=2e-3, atol=2e-4)
    chex.assert_trees_all_close(states[0].params, expected_states[0].params, rtol=1e-3, atol=1e-4)


@pytest.mark.extended
def test_selected_sources_go_with_patches_of_other_images():
    views = {"cutmix_probability": 1.0}
    chex.assert_tree_all_finite(run(selecting("simsiam_gsg", "selected", "halves", views=views))[1])
