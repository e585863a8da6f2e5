"""The step is the algorithm box, and does what it must with every method of METHODS."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gsg_jax.methods import METHODS, PREDICTORS, TARGETS
from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.diagnostics import GRADIENT_FIGURES
from gsg_jax.methods.directpred import directpred_loss
from gsg_jax.methods.guided import guided_loss
from gsg_jax.methods.method import Outputs
from gsg_jax.train import step as step_module
from gsg_jax.train.figures import FIGURES
from gsg_jax.train.state import TrainState, step_keys
from gsg_jax.train.step import train_step, update_ema
from gsg_jax.train.views import Views
from tests.small import small_experiment
from tests.train.steps import (
    NUM_STEPS,
    abstract_step,
    exact_run,
    experiment_of,
    extended,
    history,
    online,
    run,
)

# --- The common suite ------------------------------------------------------------------------


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return request.param


def test_steps_are_finite_traced_once_and_keep_the_state_tree(method):
    _, states, logs, _ = history(method)
    chex.assert_tree_all_finite(logs)
    for state in states[1:]:
        chex.assert_trees_all_equal_shapes_and_dtypes(state, states[0])
    assert [int(state.step) for state in states] == list(range(NUM_STEPS + 1))


def test_the_loss_falls_on_a_fixed_batch(method):
    _, states, logs, loss_of = history(method)
    losses = [log["loss"] for log in logs]
    if method == "moco_v2":  # its queue fills with the batch itself, so only the first one counts
        memory = states[0].memory
        losses = [loss_of(state.replace(memory=memory)) for state in states[:-1]]
    assert np.mean(losses[-8:]) < np.mean(losses[:4]) - 0.1


def test_metrics_lie_in_their_ranges(method):
    for log in history(method)[2]:
        if METHODS[method].loss in (asymmetric_loss, directpred_loss, guided_loss):
            assert -1 <= log["loss"] <= 1
        assert 0 < log["projection_std"] < 1.1
        assert 1 <= log["embedding_rank"] <= 8
        shares = [log[name] for name in log if name.startswith("closest_")]
        assert sum(shares) == pytest.approx(1 if method.endswith("_gsg") else 0)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].target != "online"])
def test_an_ema_target_moves_by_the_closed_form_with_running_statistics_of_its_own(method):
    states = history(method)[1]
    chex.assert_trees_all_equal(states[0].target_params, online(states[0].params))
    expected = states[0].target_params
    for state in states[1:]:
        params = online(state.params)
        expected = jax.tree.map(lambda t, o: 0.99 * t + 0.01 * o, expected, params)
    chex.assert_trees_all_close(states[-1].target_params, expected, rtol=1e-5, atol=1e-6)
    ours, target = (
        stats["projector"]["bn1"]["mean"]
        for stats in (states[-1].batch_stats, states[-1].target_batch_stats)
    )
    assert np.abs(target).max() > 0
    assert not np.allclose(ours, target, rtol=1e-3, atol=1e-5)


HEAVY = [extended(name) for name in sorted(METHODS) if name != "byol_gsg"]


@pytest.mark.parametrize("method", ["byol_gsg", *HEAVY])
def test_one_step_on_eight_devices_equals_one_device(method):
    experiment, (_, one, *_), (one_log, *_), _ = history(method)
    (_, eight), (eight_log,) = run(experiment, num_devices=8)

    for group in ("params", "target_params", "batch_stats", "memory"):
        found, expected = getattr(eight, group), getattr(one, group)
        chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(eight_log["loss"], one_log["loss"], rtol=1e-5, atol=1e-5)
    closest = [name for name in one_log if name.startswith("closest_")]
    assert {n: eight_log[n] for n in closest} == {n: one_log[n] for n in closest}


# --- The algorithm box, on parameters of two numbers ------------------------------------------


def tiny_state(step=3):
    w = {"w": jnp.array([1.0, -2.0])}
    params = {"backbone": w, "projector": w, "predictor": w}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"old": jnp.array([0.0])},
        target_params=jax.tree.map(lambda x: x + 10.0, online(params)),
        target_batch_stats={},
        opt_state=optax.sgd(0.1).init(params),
        memory=jnp.float32(4),
    )


@pytest.fixture
def tiny(monkeypatch):
    """An experiment whose views, passes and figures are stubs that show the keys they get."""
    views = lambda _, images, key: Views(jax.random.key_data(key), images, None, None)  # noqa: E731
    monkeypatch.setattr(step_module, "draw_views", views)
    monkeypatch.setattr(step_module, "step_figures", lambda *_: {})
    monkeypatch.setattr(step_module, "target_pass", lambda e, s, whole: (whole, {"new": whole}))

    def online_pass(experiment, variables, views, z_target, key):
        outputs = Outputs(h=jax.random.key_data(key), z=views.whole, p=views.online, z_target=0)
        return outputs._replace(z=variables["params"]), {"new": views.sources}

    monkeypatch.setattr(step_module, "online_pass", online_pass)
    monkeypatch.setattr(step_module, "only_sources", lambda v, s: v._replace(sources=s))

    def loss(outputs, memory, key):
        squares = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(outputs.z))
        keys = {"loss_key": jax.random.key_data(key), "drop_path_key": outputs.h}
        return outputs.p * squares, memory + 1, {"attraction": squares, **keys}

    experiment = small_experiment("byol")
    return dataclasses.replace(
        experiment,
        loss=loss,
        optimizer=optax.sgd(0.1),
        ema_decay=lambda step: 1 - 0.1 * step,
        select=lambda z, key: jnp.stack([z, jax.random.key_data(key)]),
        seed=7,
    )


def test_a_step_is_gradient_then_update_then_ema_by_hand(tiny):
    before = tiny_state()
    after, metrics = train_step(tiny, before, jnp.float32(0.5))
    w = np.array([1.0, -2.0])
    moved = w - 0.1 * (2 * 0.5 * w)
    expected = dict.fromkeys(("backbone", "projector", "predictor"), {"w": moved})
    chex.assert_trees_all_close(after.params, expected, rtol=1e-6)
    decay = 1 - 0.1 * 3  # of this step, and of the parameters after the update
    expected = dict.fromkeys(("backbone", "projector"), {"w": decay * (w + 10) + 0.3 * moved})
    chex.assert_trees_all_close(after.target_params, expected, rtol=1e-6)
    assert (int(after.step), float(after.memory)) == (4, 5.0)
    np.testing.assert_allclose(metrics["loss"], 0.5 * 15)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(15), rtol=1e-6)
    assert set(metrics) == {"loss", "grad_norm", "loss_key", "drop_path_key"}


def test_the_keys_of_a_step_are_derived_from_its_seed_and_number_and_go_where_they_belong(tiny):
    seen = set()
    for seed, number in ((7, 3), (7, 4), (8, 3)):
        key = jax.random.fold_in(jax.random.key(seed), number)
        view_key, loss_key = jax.random.split(key)
        expected = (view_key, loss_key, jax.random.fold_in(key, 2**32 - 1))
        data = [np.asarray(jax.random.key_data(k)) for k in expected]
        for found, wanted in zip(step_keys(seed, jnp.int32(number)), data, strict=True):
            np.testing.assert_array_equal(jax.random.key_data(found), wanted)
        after, metrics = train_step(
            dataclasses.replace(tiny, seed=seed), tiny_state(number), jnp.float32(0.5)
        )
        np.testing.assert_array_equal(after.target_batch_stats["new"], data[0])
        np.testing.assert_array_equal(after.batch_stats["new"], np.stack(data[:2]))
        np.testing.assert_array_equal(metrics["loss_key"], data[1])
        np.testing.assert_array_equal(metrics["drop_path_key"], data[2])
        seen |= {tuple(x) for x in data}
    assert len(seen) == 9


def test_a_gradient_above_the_limit_changes_the_step_only(tiny):
    inner = optax.chain(optax.scale_by_schedule(lambda count: 1.0), optax.sgd(0.1))
    before = tiny_state()
    before = before.replace(
        opt_state=inner.init(before.params),
        batch_stats={"new": jnp.zeros((2, 2), jnp.uint32)},
        target_batch_stats={"new": jnp.zeros(2, jnp.uint32)},
    )
    norm = np.float32(np.sqrt(15))
    for limit, scale, is_skipped in (
        (0.99 * norm, 0.5, True),
        (1.01 * norm, 0.5, False),
        (0.0, 0.5, False),
        (0.0, np.nan, True),
        (0.0, np.inf, True),
    ):
        experiment = dataclasses.replace(
            tiny, optimizer=inner, skips_bad_steps=True, grad_norm_limit=float(limit)
        )
        after, metrics = train_step(experiment, before, jnp.float32(scale))
        assert int(after.step) == 4
        assert int(metrics["skipped_steps"]) == (4 if is_skipped else 3)  # of an optimizer at 0
        if is_skipped:
            chex.assert_trees_all_equal(after.replace(step=before.step), before)
        else:
            assert float(after.memory) == 5 and (after.params["backbone"]["w"] != 1).all()


def test_ema_by_hand_and_frozen_weights_are_not_moved_by_rounding():
    target = {"backbone": {"w": jnp.array([1.0, 2.0])}}
    online = {"backbone": {"w": jnp.array([3.0, -2.0])}, "predictor": {"w": jnp.array([9.0])}}
    np.testing.assert_allclose(update_ema(target, online, 0.75)["backbone"]["w"], [1.5, 1.0])
    assert update_ema({}, online, 0.75) == {}
    weights = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    tree = {"backbone": {"patch_embed": {"w": weights}, "patch_embedding": {"w": weights}}}
    moved = update_ema(tree, tree, 0.99, (("backbone", "patch_embed"),))["backbone"]
    assert moved["patch_embed"]["w"].tobytes() == weights.tobytes()
    assert np.asarray(moved["patch_embedding"]["w"]).tobytes() != weights.tobytes()  # what it saves


# --- Choices of the config -----------------------------------------------------------------------


def choices():
    """Methods with targets and predictors that are not their own."""
    for name in ("simsiam", "byol_gsg", "moco_v2", "unigrad"):
        for target in TARGETS:
            if target != "ema_positive" or target in METHODS[name].extras:
                yield name, target, next(x for x in PREDICTORS if x != METHODS[name].predictor)


@pytest.mark.parametrize(("method", "target", "predictor"), list(choices()))
def test_target_and_predictor_are_choices_of_the_config(method, target, predictor):
    before, after, _ = abstract_step(experiment_of(method, target=target, predictor=predictor))
    heads = {"predictor"} if predictor == "mlp" else set()
    assert set(before.params) == {"backbone", "projector"} | heads
    assert set(before.target_params) == (set() if target == "online" else {"backbone", "projector"})
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)


def test_bfloat16_activations_leave_state_and_loss_in_float32():
    experiment = experiment_of("byol_gsg", model={"dtype": "bfloat16"})
    assert experiment.online.backbone.dtype == jnp.bfloat16
    for tree in abstract_step(experiment):
        floats = [x for x in jax.tree.leaves(tree) if np.issubdtype(x.dtype, np.inexact)]
        assert {x.dtype.name for x in floats} == {"float32"}


@pytest.mark.extended
def test_bfloat16_activations_give_nearly_the_same_loss():
    _, (log,) = run(experiment_of("byol_gsg", model={"dtype": "bfloat16"}))
    np.testing.assert_allclose(log["loss"], history("byol_gsg")[2][0]["loss"], atol=0.02)


def test_inspecting_the_gradient_changes_no_bit_of_the_state():
    inspecting = experiment_of(
        "simsiam_gsg", evaluation={"inspect_gradients": True}, run={"log_every_steps": 2}
    )
    states, (between, logged) = run(inspecting, 2, exact=True)
    plain, logs = exact_run()
    chex.assert_trees_all_equal(states, plain[:3])
    assert all(np.isnan(between[name]) and np.isfinite(logged[name]) for name in FIGURES)
    assert logged["negative_gradient"] > 0 and not set(GRADIENT_FIGURES) & set(logs[1])
