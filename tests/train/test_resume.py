"""A run that was stopped, and started again, ends as if nothing had happened.

Kills are in tests/faults/.
"""

import contextlib
import json
import signal

import pytest

from gsg_jax.train import loop as train
from tests.runs import (
    LONG,
    assert_same,
    call,
    figures,
    finish,
    last_step,
    start,
    tiny,
    wait_until,
    write_images,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that nobody interrupted: what makes its flags, its workdir and last line."""

    def flags(workdir, *more):
        return tiny("byol_gsg", images, workdir, *LONG, *more)

    workdir = tmp_path_factory.mktemp("whole")
    return flags, workdir, finish(*flags(workdir))[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stop_requested_saves_and_says_so_and_goes_on_as_if_nothing_were(
    whole, tmp_path, number
):
    flags, *reference = whole
    stopped = []
    for goal in (15, 90):
        run = start(*flags(tmp_path))
        wait_until(lambda g=goal: last_step(tmp_path) >= g, run)
        run.send_signal(number)
        out, err = run.communicate(timeout=100)
        assert run.returncode == 0 and "Traceback" not in err
        last = figures(out)
        stopped.append(last["step"])
        assert last["num_steps"] == 400 and "pretrained" not in err
        assert f"stopped at step {last['step']} and saved: the same command resumes the run" in err
        assert (tmp_path / "checkpoints" / str(last["step"])).is_dir()
    assert 0 < stopped[0] < stopped[1] < 400
    last, err = finish(*flags(tmp_path))
    assert f"resuming from the checkpoint of step {stopped[1]} " in err
    assert_same(tmp_path, last, *reference)


def test_a_run_killed_before_its_first_step_begins_again(whole, tmp_path):
    flags, *reference = whole
    for name in ("config.json", "baselines.json"):
        run = start(*flags(tmp_path))
        wait_until(lambda n=name: (tmp_path / n).exists(), run)
        run.kill()
        run.communicate()
    last, _ = finish(*flags(tmp_path))
    assert_same(tmp_path, last, *reference)


@pytest.mark.parametrize("name", ["simsiam", "byol", "simsiam_gsg"])
def test_each_method_goes_on_bit_for_bit(images, tmp_path, name, monkeypatch):
    """In this process, on eight devices, stopped after every third step."""
    short = ["--config.run.num_steps=11", "--config.optim.warmup_epochs=2"]
    status, out, _ = call(*tiny(name, images, tmp_path / "whole", *short))
    assert status == 0
    monkeypatch.setattr(train, "stop_signals", lambda: contextlib.nullcontext(every_third()))
    steps = []
    for _ in range(4):
        status, again, _ = call(*tiny(name, images, tmp_path / "parts", *short))
        steps.append(figures(again)["step"])
    assert steps == [3, 6, 9, 11]
    assert figures(again)["state_digest"] == figures(out)["state_digest"]
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert [json.loads(x)["step"] for x in metrics[0].splitlines()][-1] == 11


def every_third():
    """A stop signal that comes when it has been asked for three times."""
    asked = []

    def stop_requested():
        asked.append(1)
        return len(asked) > 3

    return stop_requested
