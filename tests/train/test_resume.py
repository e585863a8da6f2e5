"""A run that was killed or stopped, and started again, ends as if nothing had happened.

More kills are in tests/faults/.
"""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from gsg_jax.train import loop as train
from tests.runs import (
    LONG,
    ROOT,
    assert_same,
    call,
    figures,
    last_step,
    tiny,
    wait_until,
    write_images,
)

SHORTER = ("--config.run.num_steps=80",)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """An uninterrupted run: what makes its flags, its workdir and last line."""

    def flags(workdir):
        return tiny("byol_gsg", images, workdir, *LONG, *SHORTER)

    workdir = tmp_path_factory.mktemp("whole")
    status, out, err = call(*flags(workdir))
    assert status == 0, err
    return flags, workdir, figures(out)


def start_like_this_process(*flags):
    """Starts the command line on as many devices as this process has, so that figures compare."""
    command = [sys.executable, "-m", "gsg_jax.main", *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=pipe, stderr=pipe, text=True)


def interrupt(flags, workdir, goal, number):
    """Sends a signal after a step: exit status, standard output and standard error."""
    process = start_like_this_process(*flags(workdir))
    wait_until(lambda: last_step(workdir) >= goal, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def test_a_killed_run_resumes_to_the_bit(whole, tmp_path):
    flags, *reference = whole
    status, out, _ = interrupt(flags, tmp_path, 20, signal.SIGKILL)
    assert (status, out) == (-signal.SIGKILL, "") and last_step(tmp_path) < 80
    status, out, err = call(*flags(tmp_path))
    assert status == 0 and "resuming from the checkpoint of step " in err, err
    assert_same(tmp_path, figures(out), *reference)


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
    status, out, err = call(*flags(tmp_path))
    assert f"resuming from the checkpoint of step {stopped[1]} " in err
    assert_same(tmp_path, figures(out), *reference)


@pytest.mark.extended
def test_a_run_killed_before_its_first_step_begins_again(whole, tmp_path):
    flags, *reference = whole
    for name in ("config.json", "baselines.json"):
        process = start_like_this_process(*flags(tmp_path))
        wait_until(lambda n=name: (tmp_path / n).exists(), process)
        process.kill()
        process.communicate()
    status, out, err = call(*flags(tmp_path))
    assert status == 0, err
    assert_same(tmp_path, figures(out), *reference)


@pytest.mark.extended
def test_a_method_with_memory_stopped_after_every_third_step_resumes_to_the_bit(
    images, tmp_path, monkeypatch
):
    short = ["--config.run.num_steps=11", "--config.optim.warmup_epochs=2"]
    status, out, _ = call(*tiny("moco_v2", images, tmp_path / "whole", *short))
    assert status == 0
    monkeypatch.setattr(train, "stop_signals", lambda: contextlib.nullcontext(every_third()))
    steps = []
    for _ in range(4):
        status, again, _ = call(*tiny("moco_v2", images, tmp_path / "parts", *short))
        steps.append(figures(again)["step"])
    assert steps == [3, 6, 9, 11]
    assert_same(tmp_path / "parts", figures(again), tmp_path / "whole", figures(out))


def every_third():
    """A stop signal that comes when it has been asked for three times."""
    asked = []

    def stop_requested():
        asked.append(1)
        return len(asked) > 3

    return stop_requested
