"""Bad steps are skipped, counted and reported, and too many of them stop the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.console import UserError
from gsg_jax.train import loop as train
from gsg_jax.train.guards import LossGuard, check_finite
from gsg_jax.train.state import TrainState, skipped_steps
from tests.runs import done, logged, refused, tiny, warnings
from tests.train.steps import experiment_of, traced


def poisoned(experiment, bad_steps):
    """An experiment whose loss, and so every gradient, is NaN at some steps."""
    keys = [
        jax.random.split(jax.random.fold_in(jax.random.key(experiment.seed), step - 1))[1]
        for step in bad_steps
    ]
    bad = np.stack([np.asarray(jax.random.key_data(key)) for key in keys])

    def loss(outputs, memory, key):
        value, memory, metrics = experiment.loss(outputs, memory, key)
        is_bad = jnp.any(jnp.all(jax.random.key_data(key)[None, :] == bad, axis=1))
        scale = jnp.where(is_bad, np.nan, 1.0)
        memory = jax.tree.map(lambda x: x * scale.astype(x.dtype), memory)
        return value * scale, memory, metrics

    return dataclasses.replace(experiment, loss=loss)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("constant_predictor_lr", [False, True])
def test_every_optimizer_counts_the_steps_that_were_not_skipped(optimizer, constant_predictor_lr):
    optim = {"name": optimizer, "constant_predictor_lr": constant_predictor_lr}
    experiment = experiment_of("simsiam", optim=optim)
    params = {name: {"kernel": jnp.ones((2, 2))} for name in ("backbone", "predictor")}
    opt_state = experiment.optimizer.init(params)
    _, opt_state = jax.jit(experiment.optimizer.update)(params, opt_state, params)
    empty = dict.fromkeys(("batch_stats", "target_params", "target_batch_stats", "memory"))
    state = TrainState(step=jnp.int32(3), params=params, opt_state=opt_state, **empty)
    assert int(skipped_steps(state)) == 2


def test_without_skipping_the_program_is_as_if_there_were_no_limit():
    def text(**optim):
        return str(traced(experiment_of("simsiam", optim=optim)))

    plain = text()
    assert "is_finite" not in plain and text(grad_norm_limit=2.0) == plain
    assert "is_finite" in text(max_skipped_steps=1)


def test_the_guard_counts_over_the_whole_run_reports_each_skip_and_stops_beyond_the_limit():
    told = []
    guard = LossGuard(lambda: "advice", told.append, max_skipped_steps=3, skipped_before=1)

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
        "(optim.max_skipped_steps is 3): advice"
    )


def test_a_limit_without_skips_stops_at_the_first_gradient_above_it():
    guard = LossGuard(lambda: "advice", grad_norm_limit=0.1)
    guard.push(1, {"loss": 0.0, "grad_norm": np.float32(0.1)})
    guard.push(2, {"loss": 0.0, "grad_norm": np.float32(0.11)})
    with pytest.raises(UserError, match="norm is 0.11, above .*limit=0.1 at step 2: advice"):
        guard.check_all()


def test_a_state_that_is_not_finite_is_never_saved(images, tmp_path, monkeypatch):
    bad = {"bn1": {"mean": jnp.array([0.0, jnp.inf])}}
    good = {"bn1": {"mean": jnp.array([0.0, 1.0])}}
    fields = dict.fromkeys([f.name for f in dataclasses.fields(TrainState)], good)
    state = TrainState(**fields | {"step": jnp.int32(0)})
    check_finite(state, lambda: "advice")
    with pytest.raises(UserError, match="target_batch_stats is not finite after step 0: advice"):
        check_finite(state.replace(target_batch_stats=bad), lambda: "advice")

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
    said = refused(*tiny("simsiam", images, tmp_path, *flags))
    assert "error: batch_stats is not finite after step 4: step 2 is kept" in said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


SKIPPING = ("--config.run.log_every_steps=1", "--config.eval.knn_every_epochs=3")


def poison_runs(monkeypatch, bad_steps):
    build = train.build_experiment
    monkeypatch.setattr(
        train, "build_experiment", lambda *a, **k: poisoned(build(*a, **k), bad_steps)
    )


def test_a_run_skips_bad_steps_stops_beyond_the_limit_and_resumes_as_if_it_had_not(
    images, tmp_path, monkeypatch
):
    poison_runs(monkeypatch, [2, 4, 7])
    allowed = "--config.optim.max_skipped_steps={}".format
    flags = tiny("byol_gsg", images, tmp_path / "whole", *SKIPPING)
    whole, err = done(*flags, allowed(3))
    lines = logged(tmp_path / "whole")
    assert [int(line["skipped_steps"]) for line in lines] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [line["step"] for line in lines if "loss" not in line] == [2, 4, 7]
    assert whole["loss"] == lines[-1]["loss"] and "NaN" not in str(lines)
    expected = [f"warning: step {step} is skipped" for step in (2, 4, 7)]
    assert [line.split(",")[0] for line in warnings(err)] == expected

    flags = tiny("byol_gsg", images, tmp_path / "parts", *SKIPPING)
    said = refused(*flags, allowed(2))
    assert said.startswith(
        "error: the loss is nan at step 7, and 2 steps were skipped before it "
        f"(optim.max_skipped_steps is 2): step 6 is kept in {tmp_path}"
    )
    assert "higher --config.optim.max_skipped_steps (now 2)" in said
    last, err = done(*flags, allowed(3))
    assert "resuming from the checkpoint of step 6" in err
    assert last["state_digest"] == whole["state_digest"]
    assert logged(tmp_path / "parts") == lines
