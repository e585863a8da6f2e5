"""The step on other backbones than ResNets with BatchNorm, stochastic depth, frozen patches."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.train.branches import online_pass, target_pass
from gsg_jax.train.state import init_state
from gsg_jax.train.views import Views
from tests.train.steps import NUM_STEPS, VIT, abstract_step, experiment_of, run

NETWORKS = {
    "vit": VIT,
    "vit_without_batchnorm": {**VIT, "head_norm": "layer"},
    "resnet_without_batchnorm": {
        **{"norm": "group", "norm_groups": 4, "weight_standardization": True},
        "head_norm": "layer",
    },
}


@pytest.mark.parametrize("network", NETWORKS)
def test_without_batchnorm_a_group_of_statistics_is_empty_and_stays(network):
    state, after, _ = abstract_step(experiment_of("byol", model=NETWORKS[network]))
    assert set(state.batch_stats) == set(state.params) and state.batch_stats["backbone"] == {}
    assert set(state.target_batch_stats) == set(state.target_params)
    assert bool(jax.tree.leaves(state.batch_stats)) == (network == "vit")
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("simsiam_gsg", "resnet_without_batchnorm"),
        ("byol", "vit"),
        ("byol", "vit_without_batchnorm"),
    ],
)
def test_networks_without_batchnorm_train(method, network):
    states, logs = run(experiment_of(method, model=NETWORKS[network]), NUM_STEPS)
    chex.assert_tree_all_finite(logs)
    losses = [log["loss"] for log in logs]
    assert np.mean(losses[-8:]) < np.mean(losses[:4]) - 0.1
    chex.assert_trees_all_equal_shapes_and_dtypes(*states)


def test_stochastic_depth_follows_its_key_in_the_online_branch_and_the_target_has_none():
    # All views are black: only who skips a branch differs.
    experiment = experiment_of("byol", model={**VIT, "drop_path": 0.9})
    assert experiment.online.backbone.drop_path == 0.9
    assert experiment.target.backbone.drop_path == 0
    state = jax.jit(functools.partial(init_state, experiment, 1))()
    black = jnp.zeros((32, 12, 12, 1))

    @jax.jit
    def embeddings(key):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        z_target, _ = target_pass(experiment, state, black)
        views = Views(black, black, None, None)
        outputs, _ = online_pass(experiment, variables, views, z_target, key)
        return outputs.h, outputs.z_target

    h, z = embeddings(jax.random.key(0))
    np.testing.assert_array_equal(embeddings(jax.random.key(0))[0], h)
    assert np.abs(embeddings(jax.random.key(1))[0] - h).max() > 1e-4
    assert np.ptp(h, axis=(0, 1)).max() > 1e-4 > 1e-6 > np.ptp(z, axis=(0, 1)).max()


FROZEN = {
    "model": {**VIT, "freeze_patches": True},
    "optim": {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.1},
}


@pytest.mark.extended
def test_frozen_patches_stay_to_the_bit_in_both_branches():
    states, _ = run(experiment_of("byol", **FROZEN), 2)
    start = states[0].params["backbone"]
    for params in (states[-1].params, states[-1].target_params):
        for name, tree in params["backbone"].items():
            before, after = jax.tree.leaves(start[name]), jax.tree.leaves(tree)
            is_same = [a.tobytes() == b.tobytes() for a, b in zip(after, before, strict=True)]
            assert all(is_same) if name == "patch_embed" else not any(is_same), name
