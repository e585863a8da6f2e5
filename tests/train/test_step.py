"""What every method's step must do: the common suite over METHODS."""

import collections
import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from gsg_jax.config.check import check_pretraining
from gsg_jax.devices import mesh as meshes
from gsg_jax.methods import METHODS
from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.diagnostics import GRADIENT_FIGURES
from gsg_jax.methods.directpred import directpred_loss
from gsg_jax.methods.guided import guided_loss
from gsg_jax.train.branches import online_pass, target_pass
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.figures import FIGURES, outputs_of_projections
from gsg_jax.train.state import init_state
from gsg_jax.train.step import train_step, update_ema
from gsg_jax.train.views import draw_views
from tests.small import images, small_config, small_experiment

FAST = ("simsiam", "byol", "simsiam_gsg", "byol_gsg")
ALL_METHODS = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in sorted(METHODS)
]
NUM_STEPS = 30


def devices_mesh(count):
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def run(experiment, num_devices, num_steps, batches=None):
    """States before the first and after each step, and the metrics of each step."""
    traced = []

    def loss(*arguments):
        traced.append(len(logs))  # after how many steps
        return experiment.loss(*arguments)

    mesh = devices_mesh(num_devices)
    step = jit_step(dataclasses.replace(experiment, loss=loss), mesh)
    init = functools.partial(init_state, experiment, 1)
    state = jax.jit(init, out_shardings=meshes.replicated(mesh))()
    states, logs = [jax.device_get(state)], []
    for n in range(num_steps):
        batch = images() if batches is None else batches[n]
        state, metrics = step(state, meshes.global_batch(mesh, batch))
        states.append(jax.device_get(state))
        logs.append(jax.device_get(metrics))
    assert traced and not any(traced), "the step was traced more than once"
    return states, logs


@pytest.fixture(scope="module", params=ALL_METHODS)
def history(request):
    """Steps of a method on one batch, on one device."""
    experiment = small_experiment(request.param)
    return request.param, experiment, *run(experiment, 1, NUM_STEPS)


def test_steps_are_finite_traced_once_and_keep_the_state_tree(history):
    _, _, states, logs = history
    assert all(np.isfinite(value) for log in logs for value in log.values())
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype.name), state) for state in states]
    assert all(shape == shapes[0] for shape in shapes)
    assert [int(state.step) for state in states] == list(range(NUM_STEPS + 1))


def test_the_loss_falls_on_a_fixed_batch(history):
    method, experiment, states, logs = history
    losses = [log["loss"] for log in logs]
    if method == "moco_v2":  # its queue fills with the batch itself: the first one is the judge
        step = jax.jit(functools.partial(train_step, experiment))
        states = [state.replace(memory=states[0].memory) for state in states[:-1]]
        losses = [step(state, images())[1]["loss"] for state in states]
    assert np.mean(losses[-8:]) < np.mean(losses[:4]) - 0.1


def test_metrics_lie_in_their_ranges(history):
    method, _, _, logs = history
    for log in logs:
        if METHODS[method].loss in (asymmetric_loss, directpred_loss, guided_loss):
            assert -1 <= log["loss"] <= 1
        assert 0 < log["projection_std"] < 1.1
        assert 1 <= log["embedding_rank"] <= 8
        shares = [log[name] for name in log if name.startswith("closest_")]
        assert sum(shares) == pytest.approx(1 if method.endswith("_gsg") else 0)


def test_an_ema_target_starts_as_a_copy_and_moves_by_the_closed_form(history):
    method, experiment, states, _ = history
    if METHODS[method].target == "online":
        assert states[0].target_params == {} and states[-1].target_batch_stats == {}
        return
    expected = {k: v for k, v in states[0].params.items() if k != "predictor"}
    jax.tree.map(np.testing.assert_array_equal, states[0].target_params, expected)
    for state in states[1:]:
        online = {k: v for k, v in state.params.items() if k != "predictor"}
        expected = jax.tree.map(lambda t, o: 0.99 * t + 0.01 * o, expected, online)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, states[-1].target_params, expected)


def test_an_ema_target_keeps_running_statistics_of_its_own(history):
    method, _, states, _ = history
    if METHODS[method].target == "online":
        assert not jax.tree.leaves(states[-1].target_batch_stats)
        return
    online = states[-1].batch_stats["projector"]["bn1"]["mean"]
    target = states[-1].target_batch_stats["projector"]["bn1"]["mean"]
    assert np.abs(target).max() > 0
    assert not np.allclose(online, target, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_one_step_on_eight_devices_equals_one_device(method):
    experiment = small_experiment(method)
    (_, one), (one_log,) = run(experiment, 1, 1)
    (_, eight), (eight_log,) = run(experiment, 8, 1)

    def close(found, expected):
        # VICReg's gradient here has a norm of 159 and moves parameters to 5.6 in one step: rounding
        # is 1.5e-5, so its limit is of the largest entry.
        largest = np.max(np.abs(expected), initial=1.0)
        limit = 1e-5 * (largest if method == "vicreg" else 1.0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)

    jax.tree.map(close, eight.params, one.params)
    jax.tree.map(close, eight.target_params, one.target_params)
    jax.tree.map(close, eight.batch_stats, one.batch_stats)
    np.testing.assert_allclose(eight_log["loss"], one_log["loss"], rtol=1e-5, atol=1e-5)
    jax.tree.map(close, eight.memory, one.memory)
    for name in one_log:
        if name.startswith("closest_"):
            assert eight_log[name] == one_log[name]


def test_the_random_draws_follow_the_seed_and_the_step_alone():
    experiment = small_experiment("simsiam_gsg")
    states, logs = run(experiment, 1, 2)
    _, again = run(experiment, 1, 2)
    assert [log["loss"] for log in again] == [log["loss"] for log in logs]
    step = jax.jit(functools.partial(train_step, experiment))
    later = states[0].replace(step=jnp.asarray(5))
    assert step(later, images())[1]["loss"] != logs[0]["loss"]


@pytest.mark.parametrize("target", ["online", "ema"])
@pytest.mark.parametrize("predictor", ["mlp", "none"])
@pytest.mark.parametrize("method", ["simsiam", "byol_gsg"])
def test_target_and_predictor_are_choices_of_the_config(method, target, predictor):
    experiment = small_experiment(method, target=target, predictor=predictor)
    state = jax.eval_shape(functools.partial(init_state, experiment, 1))
    assert set(state.params) == {"backbone", "projector"} | (
        {"predictor"} if predictor == "mlp" else set()
    )
    assert set(state.target_params) == (set() if target == "online" else {"backbone", "projector"})
    after, _ = jax.eval_shape(functools.partial(train_step, experiment), state, images())
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_four_views_take_four_running_statistics_updates():
    experiment = small_experiment("simsiam_gsg", pairing="permutation", num_views=4)
    (before, after), _ = run(experiment, 1, 1)
    # What is left of a start 1e6 higher says how many updates of momentum 0.1 there were.
    shallow = before.replace(batch_stats=jax.tree.map(lambda x: x + 1e6, before.batch_stats))
    moved, _ = jax.jit(functools.partial(train_step, experiment))(shallow, images())
    left = (
        moved.batch_stats["projector"]["bn3"]["mean"]
        - after.batch_stats["projector"]["bn3"]["mean"]
    ) / 1e6
    np.testing.assert_allclose(left, 0.9**4, rtol=1e-4)


def test_bfloat16_activations_leave_state_and_loss_in_float32():
    config = small_config("byol_gsg")
    config.model.dtype = "bfloat16"
    half = build_experiment(config, num_steps=20, steps_per_epoch=5)
    (_, after), (log,) = run(half, 1, 1)
    _, (reference,) = run(small_experiment("byol_gsg"), 1, 1)
    floats = [x for x in jax.tree.leaves(after) if np.issubdtype(x.dtype, np.floating)]
    assert {x.dtype.name for x in floats} == {"float32"}
    np.testing.assert_allclose(log["loss"], reference["loss"], atol=0.02)


def test_ema_by_hand():
    target = {"backbone": {"w": jnp.array([1.0, 2.0])}}
    online = {"backbone": {"w": jnp.array([3.0, -2.0])}, "predictor": {"w": jnp.array([9.0])}}
    moved = update_ema(target, online, 0.75)
    np.testing.assert_allclose(moved["backbone"]["w"], [1.5, 1.0])
    assert update_ema({}, online, 0.75) == {}


# --- Local views, patches, targets of two branches ---------------------------------------------

VARIANTS = [
    ("simsiam", {}, {"cutmix_probability": 1.0}),
    ("simsiam_gsg", {}, {"num_local": 3}),
    ("byol_gsg", {"ema_schedule": "cosine"}, {"cutmix_probability": 1.0}),
    ("unigrad", {"target": "online"}, {"num_local": 2}),
    ("unigrad", {"target": "ema_positive"}, {"cutmix_probability": 1.0}),
    ("moco_v2", {"target": "ema_positive"}, {}),
]


def variant(method, choices, views):
    """A small experiment with local views of 8 pixels, or patches, that is inspected."""
    config = small_config(method, **choices)
    config.views.update({"local_size": 8, "local_crop_area": (0.1, 0.5), **views})
    config.eval.inspect_gradients = True
    check_pretraining(config)
    return build_experiment(config, num_steps=20, steps_per_epoch=5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "choices", "views"), VARIANTS)
def test_a_variant_of_the_step_is_finite_and_the_same_on_eight_devices(method, choices, views):
    experiment = variant(method, choices, views)
    one, one_logs = run(experiment, 1, 2)
    eight, eight_logs = run(experiment, 8, 2)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    for group in ("params", "target_params", "batch_stats", "memory"):
        jax.tree.map(close, getattr(eight[1], group), getattr(one[1], group))
    assert set(one_logs[0]) >= set(FIGURES)
    _check_the_inspectors_outputs(experiment, one[1])
    for name, value in one_logs[0].items():
        assert np.isfinite(value) and np.isfinite(one_logs[1][name])
        np.testing.assert_allclose(eight_logs[0][name], value, rtol=1e-3, atol=1e-4)


def _check_the_inspectors_outputs(experiment, state):
    """What the inspector makes of the step's projections is what the step made."""
    views = draw_views(experiment, jnp.asarray(images()), jax.random.key(0))
    # Weights of its own, so that a mistaken branch shows.
    target_params = jax.tree.map(lambda x: x + 0.05, state.target_params)
    state = state.replace(target_params=target_params)
    z_ema, _ = target_pass(experiment, state, views.whole)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    key = jax.random.key(1)
    outputs, _ = online_pass(experiment, variables, views, z_ema, key)
    again = outputs_of_projections(experiment, state, outputs, outputs.z)
    for name in ("p", "z_target", "negatives"):
        ours, theirs = getattr(again, name), getattr(outputs, name)
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_running_statistics_are_of_global_views_alone():
    with_local = run(variant("simsiam", {}, {"num_local": 3}), 1, 1)[0][1]
    without = run(variant("simsiam", {}, {}), 1, 1)[0][1]
    jax.tree.map(np.testing.assert_array_equal, with_local.batch_stats, without.batch_stats)
    kernels = (state.params["projector"]["linear1"]["kernel"] for state in (with_local, without))
    assert np.abs(np.subtract(*kernels)).max() > 1e-4  # the local views had their say


@pytest.mark.slow
def test_the_target_branch_sees_views_without_patches():
    plain = run(variant("byol", {}, {}), 1, 1)[0][1]
    mixed = run(variant("byol", {}, {"cutmix_probability": 1.0}), 1, 1)[0][1]
    jax.tree.map(np.testing.assert_array_equal, mixed.target_batch_stats, plain.target_batch_stats)
    online = (state.batch_stats["projector"]["bn2"]["mean"] for state in (mixed, plain))
    assert np.abs(np.subtract(*online)).max() > 1e-4


@pytest.mark.slow
def test_an_ema_target_that_comes_to_rest_follows_the_closed_form():
    states, _ = run(variant("byol", {"ema_schedule": "cosine"}, {}), 1, 4)
    expected = {k: v for k, v in states[0].params.items() if k != "predictor"}
    for step, state in enumerate(states[1:]):
        decay = 1 - 0.01 * (1 + np.cos(np.pi * step / 20)) / 2
        online = {k: v for k, v in state.params.items() if k != "predictor"}
        mean = lambda t, o, decay=decay: decay * t + (1 - decay) * o  # noqa: E731
        expected = jax.tree.map(mean, expected, online)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, states[-1].target_params, expected)


@pytest.mark.slow
def test_inspecting_the_gradient_changes_no_bit_of_the_state():
    config = small_config("simsiam_gsg")
    logs = {}
    for inspects in (False, True):
        config.eval.inspect_gradients = inspects
        config.run.log_every_steps = 2
        experiment = build_experiment(config, num_steps=20, steps_per_epoch=5)
        logs[inspects] = run(experiment, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, logs[True][0][-1], logs[False][0][-1])
    between, logged = logs[True][1]
    assert all(np.isnan(between[name]) and np.isfinite(logged[name]) for name in FIGURES)
    assert logged["negative_gradient"] > 0 and not set(GRADIENT_FIGURES) & set(logs[False][1][1])


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5])
def test_projectors_of_every_depth_and_great_width(num_layers):
    config = small_config("unigrad")
    config.model.update(
        {"projector_layers": num_layers, "projector_hidden_width": 64, "projector_width": 16384}
    )
    check_pretraining(config)
    experiment = build_experiment(config, num_steps=20, steps_per_epoch=5)
    state = jax.eval_shape(functools.partial(init_state, experiment, 1))
    after, _ = jax.eval_shape(functools.partial(train_step, experiment), state, images())
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert len(state.params["projector"]) == 2 * num_layers - 1  # the last norm has no scale
    assert state.memory["correlation"].shape == (16384, 16384)


# --- Other backbones than ResNets with BatchNorm -------------------------------------------------

VIT = {"backbone": "vit_micro", "patch_size": 4, "drop_path": 0.1}
GROUP = {"norm": "group", "norm_groups": 4, "weight_standardization": True}
NETWORKS = {
    "vit": VIT,
    "vit_without_batchnorm": {**VIT, "head_norm": "layer"},
    "resnet_without_batchnorm": {**GROUP, "head_norm": "layer"},
}


def experiment_on(method, network, **optim):
    config = small_config(method)
    config.model.update(network)
    config.optim.update(optim)
    check_pretraining(config)
    return build_experiment(config, num_steps=20, steps_per_epoch=5)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["simsiam_gsg", "byol"])
def test_networks_without_batchnorm_train(method, network):
    states, logs = run(experiment_on(method, NETWORKS[network]), 1, NUM_STEPS)
    assert all(np.isfinite(value) for log in logs for value in log.values())
    losses = [log["loss"] for log in logs]
    assert np.mean(losses[-8:]) < np.mean(losses[:4]) - 0.1
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype.name), state) for state in states]
    assert all(shape == shapes[0] for shape in shapes)
    for stats, params in (
        (states[-1].batch_stats, states[-1].params),
        (states[-1].target_batch_stats, states[-1].target_params),
    ):
        assert set(stats) == set(params)
        assert not stats.get("backbone")
        assert bool(stats.get("projector")) == (network == "vit" and bool(params))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["simsiam_gsg", "byol"])
def test_without_batchnorm_a_group_of_statistics_is_empty_and_stays(method, network):
    experiment = experiment_on(method, NETWORKS[network])
    state = jax.eval_shape(functools.partial(init_state, experiment, 1))
    assert set(state.batch_stats) == set(state.params) and state.batch_stats["backbone"] == {}
    assert set(state.target_batch_stats) == set(state.target_params)
    assert bool(jax.tree.leaves(state.batch_stats)) == (network == "vit")
    after, _ = jax.eval_shape(functools.partial(train_step, experiment), state, images())
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.slow
def test_a_vision_transformers_step_on_eight_devices_equals_one_device():
    # Stochastic depth included: who skips a branch follows the image's place in the global batch.
    network = {**NETWORKS["vit"], "drop_path": 0.9}
    experiment = experiment_on("byol", network, learning_rate=0.5)
    (_, one), (one_log,) = run(experiment, 1, 1)
    (_, eight), (eight_log,) = run(experiment, 8, 1)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, eight.params, one.params)
    jax.tree.map(close, eight.target_params, one.target_params)
    jax.tree.map(close, eight.batch_stats, one.batch_stats)
    np.testing.assert_allclose(eight_log["loss"], one_log["loss"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_step_draws_who_skips_a_branch_and_the_target_skips_none():
    dropping = experiment_on("byol", {**NETWORKS["vit"], "drop_path": 0.9})
    assert dropping.online.backbone.drop_path == 0.9
    assert dropping.target.backbone.drop_path == 0
    whole = experiment_on("byol", {**NETWORKS["vit"], "drop_path": 0.0})
    (_, dropped), _ = run(dropping, 1, 1)
    (_, kept), _ = run(whole, 1, 1)
    # The statistics of one pass: the online branch's differ, the target's do not.
    online, target = (
        np.abs(a["projector"]["bn1"]["mean"] - b["projector"]["bn1"]["mean"]).max()
        for a, b in (
            (dropped.batch_stats, kept.batch_stats),
            (dropped.target_batch_stats, kept.target_batch_stats),
        )
    )
    assert online > 1e-4 > 1e-6 > target


@pytest.mark.slow
def test_every_step_draws_anew_who_skips_a_branch():
    # Black images: all views of all steps are the same.
    config = small_config("simsiam")
    config.model.update({**VIT, "drop_path": 0.9})
    config.views.solarize_probability = (0.0,)
    experiment = build_experiment(config, num_steps=20, steps_per_epoch=5)
    state = jax.jit(functools.partial(init_state, experiment, 1))()
    step = jax.jit(functools.partial(train_step, experiment))

    def mean(number):
        after, _ = step(state.replace(step=jnp.asarray(number)), np.zeros_like(images()))
        return after.batch_stats["projector"]["bn1"]["mean"]

    np.testing.assert_array_equal(mean(0), mean(0))
    assert np.abs(mean(0) - mean(1)).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("freeze_patches", [True, False])
def test_frozen_patches_stay_to_the_bit_in_both_branches(freeze_patches):
    network = {**NETWORKS["vit"], "freeze_patches": freeze_patches}
    optim = {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.1}
    states, _ = run(experiment_on("byol", network, **optim), 1, 3)
    start = states[0].params["backbone"]
    for params in (states[-1].params, states[-1].target_params):
        for name, tree in params["backbone"].items():
            before, after = jax.tree.leaves(start[name]), jax.tree.leaves(tree)
            is_same = [a.tobytes() == b.tobytes() for a, b in zip(after, before, strict=True)]
            is_frozen = freeze_patches and name == "patch_embed"
            assert all(is_same) if is_frozen else not any(is_same), name


def test_frozen_weights_are_not_moved_by_rounding():
    weights = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    tree = {"backbone": {"patch_embed": {"w": weights}, "patch_embedding": {"w": weights}}}
    moved = update_ema(tree, tree, 0.99, (("backbone", "patch_embed"),))["backbone"]
    assert moved["patch_embed"]["w"].tobytes() == weights.tobytes()
    assert np.asarray(moved["patch_embedding"]["w"]).tobytes() != weights.tobytes()  # what it saves


# Networks in which no image's output depends on another image's.
NO_BATCHNORM = {"norm": "group", "norm_groups": 4, "head_norm": "layer"}


def selecting(method, sources, pairing, **model):
    config = small_config(
        method, pairing=pairing, num_views=4 if pairing == "permutation" else 2, sources=sources
    )
    config.model.update(model)
    check_pretraining(config)
    return build_experiment(config, num_steps=20, steps_per_epoch=5)


@pytest.mark.parametrize("pairing", ["permutation", "halves"])
@pytest.mark.parametrize("method", ["byol_gsg", "simsiam_gsg"])
def test_without_batchnorm_selected_sources_have_the_gradient_of_all(method, pairing):
    found = {}
    for sources in ("all", "selected"):
        experiment = selecting(method, sources, pairing, **NO_BATCHNORM)
        kept = dataclasses.replace(experiment, optimizer=optax.sgd(1.0))  # the update is -gradient
        states, logs = run(kept, 1, 1)
        found[sources] = states[1].params, states[1].target_params, logs[0]
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[0].params, states[1].params)
        assert max(jax.tree.leaves(moved)) > 1e-3
    (params, target, log), (expected, expected_target, expected_log) = (
        found["selected"],
        found["all"],
    )
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(target, expected_target, rtol=1e-5, atol=1e-6)
    for name in ("loss", "grad_norm", "closest_11", "closest_12", "closest_21", "closest_22"):
        np.testing.assert_allclose(log[name], expected_log[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("pairing", "num_sources"), [("permutation", 2), ("halves", 1)])
def test_the_online_branch_runs_on_the_selected_views_alone(pairing, num_sources):
    sizes = {}
    for sources in ("all", "selected"):
        experiment = selecting("byol_gsg", sources, pairing)
        step = functools.partial(train_step, experiment)
        text = str(jax.make_jaxpr(step)(init_state(experiment, 1), images()))
        rows = re.findall(r"f32\[(\d+),6,6,8\] = conv_general_dilated", text)
        sizes[sources] = collections.Counter(int(count) for count in rows)
    # Three convolutions forward in each branch, two of them back to their inputs in the online one.
    num_rows = 16 * experiment.num_views
    assert sizes["all"] == {num_rows: 8}
    assert sizes["selected"] == {num_rows: 3, 16 * num_sources: 5}


@pytest.mark.parametrize("method", ["byol_gsg", "simsiam_gsg"])
def test_a_step_on_selected_sources_on_eight_devices_equals_one_device(method):
    experiment = selecting(method, "selected", "halves")
    (_, *states), logs = run(experiment, 8, 3)
    (_, *expected_states), expected_logs = run(experiment, 1, 3)
    chex.assert_trees_all_close(logs, expected_logs, rtol=2e-3, atol=2e-4)
    chex.assert_trees_all_close(states[0].params, expected_states[0].params, rtol=1e-3, atol=1e-4)


def test_an_online_targets_running_statistics_are_of_the_selected_views():
    experiment = selecting("simsiam_gsg", "selected", "permutation")
    states, _ = run(experiment, 1, 1)
    # Two sources an image: two updates of weight 0.1 each, of variances that are not the initial 1.
    before = jax.tree.leaves(states[0].batch_stats["projector"]["bn3"])
    after = jax.tree.leaves(states[1].batch_stats["projector"]["bn3"])
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not states[1].target_batch_stats


def test_selected_sources_go_with_local_views_a_probe_and_the_gradients_figures():
    config = small_config("byol_gsg", pairing="halves", num_views=2, sources="selected")
    config.views.update({"num_local": 2, "local_size": 12})
    config.eval.update({"inspect_gradients": True, "online_linear": True})
    check_pretraining(config)
    experiment = build_experiment(config, num_steps=20, steps_per_epoch=5, num_classes=10)
    step = jax.jit(functools.partial(train_step, experiment))
    _, metrics = step(init_state(experiment, 1), images(), jnp.arange(16) % 10)
    assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
    assert 0 <= metrics["online_linear_top1"] <= 1


@pytest.mark.slow
def test_selected_sources_go_with_patches_of_other_images():
    config = small_config("simsiam_gsg", pairing="halves", num_views=2, sources="selected")
    config.views.cutmix_probability = 1.0
    check_pretraining(config)
    experiment = build_experiment(config, num_steps=20, steps_per_epoch=5)
    _, metrics = jax.jit(functools.partial(train_step, experiment))(
        init_state(experiment, 1), images()
    )
    assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
