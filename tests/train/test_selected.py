"""Selected sources: the online branch sees only the views that get gradient, to the same effect."""

import collections
import dataclasses
import re

import chex
import jax
import numpy as np
import optax
import pytest

from tests.train.steps import NO_BATCH_NORM, experiment_of, run, traced


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
        rows = re.findall(r"f32\[(\d+),6,6,8\] = conv_general_dilated", str(traced(experiment)))
        sizes[sources] = collections.Counter(int(count) for count in rows)
    # Three convolutions forward in each branch, two of them back to their inputs in the online one.
    num_rows = 16 * experiment.num_views
    assert sizes["all"] == {num_rows: 8}
    assert sizes["selected"] == {num_rows: 3, 16 * num_sources: 5}
