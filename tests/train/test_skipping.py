"""Bad steps are skipped, counted and told, and too many of them stop the run."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.console import UserError
from gsg_jax.train import loop as train
from gsg_jax.train.build import build_experiment
from gsg_jax.train.guards import LossGuard, check_finite
from gsg_jax.train.state import TrainState, finite_groups, init_state, skipped_steps
from gsg_jax.train.step import train_step
from tests.runs import call, figures, tiny, write_images
from tests.small import images as some_images
from tests.small import small_config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("images"))


def poisoned(experiment, bad_steps, factor=np.nan):
    """An experiment whose loss, and so every gradient, is NaN (or larger) at some steps."""
    keys = [
        jax.random.split(jax.random.fold_in(jax.random.key(experiment.seed), step - 1))[1]
        for step in bad_steps
    ]
    bad = np.stack([np.asarray(jax.random.key_data(key)) for key in keys])

    def loss(outputs, memory, key):
        value, memory, metrics = experiment.loss(outputs, memory, key)
        is_bad = jnp.any(jnp.all(jax.random.key_data(key)[None, :] == bad, axis=1))
        scale = jnp.where(is_bad, factor, 1.0)
        memory = jax.tree.map(lambda x: x * scale.astype(x.dtype), memory)
        return value * scale, memory, metrics

    return dataclasses.replace(experiment, loss=loss)


def experiment_of(method, bad_steps, factor=np.nan, **optim):
    config = small_config(method)
    config.optim.update(optim)
    return poisoned(build_experiment(config, num_steps=20, steps_per_epoch=5), bad_steps, factor)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("method", ["moco_v2"])  # it has an EMA target and a memory
def test_a_step_without_a_finite_loss_changes_nothing_but_the_step(method):
    experiment = experiment_of(method, [2], max_skipped_steps=3)
    step = jax.jit(train_step, static_argnums=0)
    states, logs = [init_state(experiment, 1)], []
    for _ in range(3):
        state, log = step(experiment, states[-1], some_images())
        states.append(state)
        logs.append(log)
    assert [int(log["skipped_steps"]) for log in logs] == [0, 1, 1]
    assert [bool(np.isfinite(log["loss"])) for log in logs] == [True, False, True]
    assert not np.isfinite(logs[1]["grad_norm"])
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert_same(states[1].replace(step=0), states[2].replace(step=0))
    with pytest.raises(AssertionError):
        assert_same(states[2].replace(step=0), states[3].replace(step=0))
    assert all(finite_groups(states[3]).values())
    assert int(skipped_steps(states[3])) == 1


def test_a_gradient_above_the_limit_is_skipped_and_one_below_it_is_not():
    for limit, expected in ((1e3, [0, 1, 1]), (1e9, [0, 0, 0])):
        experiment = experiment_of(
            "simsiam", [2], 1e6, max_skipped_steps=1, grad_norm_limit=limit, learning_rate=1e-9
        )
        step = jax.jit(train_step, static_argnums=0)
        state, counts = init_state(experiment, 1), []
        for _ in expected:
            state, log = step(experiment, state, some_images())
            counts.append(int(log["skipped_steps"]))
            assert np.isfinite(log["grad_norm"])
        assert counts == expected


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("constant_predictor_lr", [False, True])
def test_every_optimizer_counts_the_steps_that_were_not_skipped(optimizer, constant_predictor_lr):
    config = small_config("simsiam")
    config.optim.update({"name": optimizer, "constant_predictor_lr": constant_predictor_lr})
    experiment = build_experiment(config, num_steps=20, steps_per_epoch=5)
    params = {name: {"kernel": jnp.ones((2, 2))} for name in ("backbone", "predictor")}
    opt_state = experiment.optimizer.init(params)
    _, opt_state = jax.jit(experiment.optimizer.update)(params, opt_state, params)
    empty = dict.fromkeys(("batch_stats", "target_params", "target_batch_stats", "memory"))
    state = TrainState(step=jnp.int32(3), params=params, opt_state=opt_state, **empty)
    assert int(skipped_steps(state)) == 2


@pytest.mark.parametrize("method", ["simsiam"])
def test_where_nothing_is_skipped_the_program_is_as_if_there_were_no_limit(method):
    def lowered(**optim):
        config = small_config(method)
        config.optim.update(optim)
        experiment = build_experiment(config, num_steps=20, steps_per_epoch=5)
        state = jax.eval_shape(lambda: init_state(experiment, 1))
        images = jax.ShapeDtypeStruct(some_images().shape, np.uint8)
        return jax.jit(lambda s, x: train_step(experiment, s, x)).lower(state, images).as_text()

    plain = lowered()
    assert "is_finite" not in plain and lowered(grad_norm_limit=2.0) == plain
    assert "is_finite" in lowered(max_skipped_steps=1)


def test_the_guard_counts_over_the_whole_run_tells_each_and_stops_beyond_the_limit():
    told = []
    guard = LossGuard(lambda: "mend", told.append, max_skipped_steps=3, skipped_before=1)

    def push(step, loss, skipped):
        guard.push(step, {"loss": loss, "grad_norm": 1.0, "skipped_steps": skipped})

    for step, loss, skipped in ((5, 0.5, 1), (6, np.nan, 2), (7, 0.5, 2), (8, 0.5, 3)):
        push(step, loss, skipped)
    guard.check_all()
    assert told == [
        "step 6 is skipped, the loss is nan: 2 of at most 3 (optim.max_skipped_steps)",
        "step 8 is skipped, the state is no longer finite: 3 of at most 3 "
        "(optim.max_skipped_steps)",
    ]
    push(9, np.inf, 4)
    with pytest.raises(UserError) as error:
        guard.check_all()
    assert str(error.value) == (
        "the loss is inf at step 9, and 3 steps were skipped before it "
        "(optim.max_skipped_steps is 3): mend"
    )


def test_a_limit_without_skips_stops_at_the_first_gradient_above_it():
    guard = LossGuard(lambda: "mend", grad_norm_limit=0.1)
    guard.push(1, {"loss": 0.0, "grad_norm": np.float32(0.1)})
    guard.push(2, {"loss": 0.0, "grad_norm": np.float32(0.11)})
    with pytest.raises(UserError, match="gradient norm is 0.11, above .*limit=0.1 at step 2: mend"):
        guard.check_all()


def test_a_state_that_is_not_finite_is_never_saved(images, tmp_path, monkeypatch):
    state = init_state(experiment_of("byol", [1]), 1)
    check_finite(state, lambda: "mend")
    stats = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.inf), state.target_batch_stats)
    with pytest.raises(UserError, match="target_batch_stats is not finite after step 0: mend"):
        check_finite(state.replace(target_batch_stats=stats), lambda: "mend")

    jit_step = train.jit_step

    def overflowing(experiment, mesh, shapes):
        step_fn = jit_step(experiment, mesh, shapes)

        def step(state, *inputs):
            state, metrics = step_fn(state, *inputs)
            if int(state.step) == 4:  # its loss is finite
                stats = jax.tree.map(lambda x: x * jnp.inf, state.batch_stats)
                state = state.replace(batch_stats=stats)
            return state, metrics

        return step

    monkeypatch.setattr(train, "jit_step", overflowing)
    flags = ["--config.eval.knn_every_epochs=0", "--config.run.checkpoint_every_steps=2"]
    status, _, err = call(*tiny("simsiam", images, tmp_path, *flags))
    assert status == 1
    assert "error: batch_stats is not finite after step 4: step 2 is kept" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


SKIPPING = ("--config.run.log_every_steps=1", "--config.eval.knn_every_epochs=3")


def poison_runs(monkeypatch, bad_steps):
    build = train.build_experiment
    monkeypatch.setattr(
        train, "build_experiment", lambda *a, **k: poisoned(build(*a, **k), bad_steps)
    )


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_skips_bad_steps_and_a_stopped_one_ends_as_one_that_was_not(
    images, tmp_path, monkeypatch
):
    poison_runs(monkeypatch, [2, 4, 7])
    allowed = (*SKIPPING, "--config.optim.max_skipped_steps=3")
    status, out, err = call(*tiny("byol_gsg", images, tmp_path / "whole", *allowed))
    assert status == 0, err
    whole, logged = figures(out), lines(tmp_path / "whole")
    assert [int(line["skipped_steps"]) for line in logged] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [line["step"] for line in logged if "loss" not in line] == [2, 4, 7]
    assert whole["loss"] == logged[-1]["loss"] and "NaN" not in str(logged)
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert [line.split(",")[0] for line in warnings] == [
        f"warning: step {step} is skipped" for step in (2, 4, 7)
    ]
    # Stopped between two logged steps of the same run, and at the first bad one.
    for stops in ([3], [2, 5], [7]):
        workdir = tmp_path / "-".join(map(str, stops))
        for stop in stops:
            with monkeypatch.context() as patch:
                stop_after(patch, stop)
                status, out, _ = call(*tiny("byol_gsg", images, workdir, *allowed))
                assert status == 0 and figures(out)["step"] == stop
        status, out, err = call(*tiny("byol_gsg", images, workdir, *allowed))
        assert status == 0, err
        assert figures(out)["state_digest"] == whole["state_digest"]
        assert lines(workdir) == logged


def stop_after(patch, step):
    """Makes a run stop after a step, as SIGTERM does."""
    advance = train.RunDisplay.advance

    def noticed(display, now):
        advance(display, now)
        if now == step:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(train.RunDisplay, "advance", noticed)


def test_one_bad_step_too_many_stops_the_run_where_it_does_when_resumed_and_more_patience_mends_it(
    images, tmp_path, monkeypatch
):
    poison_runs(monkeypatch, [2, 4, 7])
    flags = tiny("simsiam", images, tmp_path, "--config.run.log_every_steps=3")
    allowed = "--config.optim.max_skipped_steps={}".format
    said = []
    for _ in range(2):  # and again when it is resumed
        status, out, err = call(*flags, allowed(2))
        assert (status, out) == (1, "")
        said.append(err.splitlines()[-1])
        assert said[-1].startswith(
            "error: the loss is nan at step 7, and 2 steps were skipped before it "
            f"(optim.max_skipped_steps is 2): step 5 is kept in {tmp_path}; "
        )
        assert "higher --config.optim.max_skipped_steps (now 2)" in said[-1]
    assert said[0] == said[1]
    status, out, err = call(*flags, allowed(3))
    assert status == 0 and "resuming from the checkpoint of step 5" in err, err
    assert figures(out)["step"] == 10

    whole = tmp_path / "whole"
    status, out_whole, _ = call(
        *tiny("simsiam", images, whole, "--config.run.log_every_steps=3"), allowed(3)
    )
    assert status == 0
    assert figures(out_whole)["state_digest"] == figures(out)["state_digest"]
    assert (whole / "metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()
