"""A run that was killed or stopped, and started again, ends as if nothing had happened.

More kills are in tests/faults/.
"""

import itertools
import math
import os
import shutil
import signal

import numpy as np
import pytest

from gsg_jax.console import UserError
from gsg_jax.train import loop as train
from tests.runs import (
    assert_same,
    done,
    figures,
    last_step,
    logged,
    refused,
    start,
    stop_after,
    tiny,
    wait_until,
)

# It saves often; one checkpoint is kept besides the best.
FLAGS = (
    "--config.run.num_steps=80",
    "--config.run.checkpoint_every_steps=7",
    "--config.run.log_every_steps=3",
    "--config.eval.knn_every_epochs=9",
    "--config.run.keep_checkpoints=1",
)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """An uninterrupted run: what makes its flags, its workdir and last line."""

    def flags(workdir):
        return tiny("byol_gsg", images, workdir, *FLAGS)

    workdir = tmp_path_factory.mktemp("whole")
    return flags, workdir, done(*flags(workdir))[0]


def interrupt(flags, workdir, goal, number):
    """Sends a signal after a step: exit status, standard output and standard error."""
    process = start(*flags(workdir), xla=os.environ["XLA_FLAGS"])  # as many devices as here
    wait_until(lambda: last_step(workdir) >= goal, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def test_a_killed_run_resumes_to_the_bit(whole, tmp_path):
    flags, *reference = whole
    status, out, _ = interrupt(flags, tmp_path, 20, signal.SIGKILL)
    assert (status, out) == (-signal.SIGKILL, "") and last_step(tmp_path) < 80
    last, err = done(*flags(tmp_path))
    assert "resuming from the checkpoint of step " in err
    assert_same(tmp_path, last, *reference)


@pytest.mark.extended
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_says_so_and_resumes_to_the_bit(whole, tmp_path, number):
    flags, *reference = whole
    stopped = []
    for goal in (15, 40):
        status, out, err = interrupt(flags, tmp_path, goal, number)
        assert status == 0 and "Traceback" not in err
        last = figures(out)
        stopped.append(last["step"])
        assert last["num_steps"] == 80 and "pretrained" not in err
        assert f"stopped at step {last['step']} and saved: the same command resumes the run" in err
        assert (tmp_path / "checkpoints" / str(last["step"])).is_dir()
    assert 0 < stopped[0] < stopped[1] < 80
    last, err = done(*flags(tmp_path))
    assert f"resuming from the checkpoint of step {stopped[1]} " in err
    assert_same(tmp_path, last, *reference)


@pytest.mark.extended
def test_a_finished_run_goes_on_to_a_greater_length_by_the_schedule_of_that_length(
    images, tmp_path, monkeypatch
):
    run, parts = tmp_path / "run", tmp_path / "parts"
    flags = tiny("byol", images, run, "--config.run.log_every_steps=1")
    flags += ["--config.method.ema_schedule=cosine", "--config.run.num_steps=0"]
    short, long = [*flags, "--config.run.num_epochs=2"], [*flags, "--config.run.num_epochs=5"]
    before, _ = done(*short)  # 2 steps an epoch
    lines = logged(run)
    shutil.copytree(run, parts)
    assert f"{run} is finished at step 4, and this command ends at step 2: give a greater" in (
        refused(*short, "--config.run.num_epochs=1")
    )
    assert "run.seed (0 there, 1 here)" in refused(*long, "--config.run.seed=1")
    last, err = done(*long)
    assert f"{run} was finished at step 4 and goes on to step 10: from here on, learning" in err
    assert (last["step"], last["num_steps"], last["extended_from"]) == (10, 10, [4])
    assert figures((run / "figures-4.json").read_text()) == before
    rates = [line["learning_rate"] for line in logged(run)]
    peak = 0.4 * 16 / 256
    steps = [(step, 4 if step < 4 else 10) for step in range(10)]
    expected = [peak * (1 + math.cos(math.pi * step / of)) / 2 for step, of in steps]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert logged(run)[:4] == lines
    again, err = done(*long)
    assert again == last and "nothing is left to train" in err
    assert "run.num_epochs (5 there, 2 here)" in refused(*short, "--config.run.seed=1")

    long.append(f"--workdir={parts}")
    for number, kills in enumerate(("record_run", "write_record")):  # before and after the rename
        with monkeypatch.context() as patch:
            patch.setattr(f"gsg_jax.run.workdir.{kills}", _kill)
            with pytest.raises(Killed):
                done(*long)
        assert (parts / "figures.json").exists() == (number == 0)
    with monkeypatch.context() as patch:
        patch.setattr(train, "stop_signals", stop_after)
        assert done(*long)[0]["step"] == 7
        line = refused(*long, "--config.run.num_epochs=6")
        assert "run.num_epochs (5 there, 6 here)" in line and "once it is finished" in line
    resumed, err = done(*long)
    assert "resuming from the checkpoint of step 7" in err and "goes on" not in err
    assert_same(parts, resumed, run, last)


class Killed(BaseException):
    """The process is killed."""


def _kill(*_):
    raise Killed


@pytest.mark.extended
def test_a_run_killed_before_its_first_step_begins_again(whole, tmp_path):
    flags, *reference = whole
    for name in ("run.lock", "baselines.json"):
        process = start(*flags(tmp_path), xla=os.environ["XLA_FLAGS"])
        wait_until(lambda n=name: (tmp_path / n).exists(), process)
        process.kill()
        process.communicate()
    assert_same(tmp_path, done(*flags(tmp_path))[0], *reference)


@pytest.mark.extended
def test_a_method_with_memory_stopped_after_every_third_step_resumes_to_the_bit(
    images, tmp_path, monkeypatch
):
    short = ["--config.run.num_steps=11", "--config.optim.warmup_epochs=2"]
    whole, _ = done(*tiny("moco_v2", images, tmp_path / "whole", *short))
    monkeypatch.setattr(train, "stop_signals", stop_after)
    steps = []
    for _ in range(4):
        last, _ = done(*tiny("moco_v2", images, tmp_path / "parts", *short))
        steps.append(last["step"])
    assert steps == [3, 6, 9, 11]
    assert_same(tmp_path / "parts", last, tmp_path / "whole", whole)


def test_data_that_fail_in_the_middle_cost_no_step_and_the_run_resumes_to_the_bit(
    whole, tmp_path, monkeypatch
):
    flags, *reference = whole

    def failing(build):
        def build_loader(*args):
            loader = build(*args)
            batches = loader.iterate(0)

            def iterate(first_step):
                yield from itertools.islice(batches, 11)
                raise UserError("cannot decode cut.jpg: repair it")

            monkeypatch.setattr(loader, "iterate", iterate)
            return loader

        return build_loader

    with monkeypatch.context() as patch:
        patch.setattr(train, "build_loader", failing(train.build_loader))
        assert refused(*flags(tmp_path)) == "error: cannot decode cut.jpg: repair it"
    last, err = done(*flags(tmp_path))
    assert "resuming from the checkpoint of step 11 " in err
    assert_same(tmp_path, last, *reference)


@pytest.mark.extended
def test_data_that_fail_in_the_monitor_cost_no_step(images, tmp_path, monkeypatch):
    flags = tiny("simsiam", images, tmp_path, "--config.eval.knn_every_epochs=3")

    def figures(self, embed, *_, **__):
        raise UserError("cannot decode cut.jpg: repair it")

    def baselines(self, state, first_step):
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(train.Monitor, "figures", figures)
        patch.setattr(train.Pretraining, "_baselines", baselines)
        assert refused(*flags) == "error: cannot decode cut.jpg: repair it"
        assert "knn_top1" not in logged(tmp_path)[-1] and logged(tmp_path)[-1]["step"] == 6
        assert (tmp_path / "checkpoints" / "6").is_dir()
