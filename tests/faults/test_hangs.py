"""A run that hangs leaves its stacks and no worker, and ends with a status that restarts it."""

import os
import pathlib
import shutil
import signal
import sys
import time

import pytest

from gsg_jax.run.integrity import saved_steps
from tests.runs import is_running, last_step, start, tiny, wait_until, write_images

PATIENCE = 12  # seconds
FLAGS = (
    "--config.data.crop=host",
    "--config.data.memory_limit_mb=0",
    "--config.data.num_processes=2",
    "--config.eval.knn_every_epochs=0",
    "--config.run.num_steps=1000000",
    "--config.run.log_every_steps=1",
    "--config.run.checkpoint_every_steps=2",
    f"--config.run.watchdog_seconds={PATIENCE}",
)

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def workers_of(run):
    threads = pathlib.Path(f"/proc/{run.pid}/task").glob("*/children")
    children = [int(pid) for thread in threads for pid in thread.read_text().split()]
    lines = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return [pid for pid, line in lines.items() if "spawn_main" in line]


def test_an_image_whose_reading_never_ends_ends_the_run_which_resumes(tmp_path, tally):
    images, workdir = write_images(tmp_path / "images"), tmp_path / "run"
    flags = tiny("simsiam", images, workdir, *FLAGS)
    image, kept = images / "train" / "even" / "004.png", tmp_path / "kept.png"
    run = start(*flags)
    try:
        wait_until(lambda: last_step(workdir) >= 3, run)
        workers = workers_of(run)
        assert workers
        shutil.copy(image, kept)
        os.mkfifo(tmp_path / "pipe")
        os.replace(tmp_path / "pipe", image)  # whoever opens it waits for a writer
        _, err = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == -signal.SIGALRM, err
    stacks = (workdir / "stacks-0.txt").read_text()
    assert "Timeout" in stacks and "in _loop" in stacks
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
    os.replace(kept, image)
    step = last_step(workdir)
    run = start(*flags)  # the same command resumes
    wait_until(lambda: last_step(workdir) > step, run)
    run.terminate()
    _, err = run.communicate(timeout=200)
    assert run.returncode == 0 and "resuming from the checkpoint of step" in err, err
    tally("an image that hangs", 1)


def test_images_that_vanish_cost_no_step_and_the_run_resumes_once_they_are_back(tmp_path, tally):
    images, workdir = write_images(tmp_path / "images"), tmp_path / "run"
    away = tmp_path / "away"
    flags = tiny("simsiam", images, workdir, *FLAGS, "--config.data.num_processes=0")
    run = start(*flags)
    try:
        wait_until(lambda: last_step(workdir) >= 5, run)
        images.rename(away)
        out, err = run.communicate(timeout=200)
    finally:
        run.kill()
    assert (run.returncode, out) == (1, "") and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("error: ") and str(images) in err.splitlines()[-1], err
    step = last_step(workdir)
    assert saved_steps(workdir)[-1] == step and f"step {step} is saved" in err
    away.rename(images)
    run = start(*flags)
    wait_until(lambda: last_step(workdir) > step, run)
    run.terminate()
    _, err = run.communicate(timeout=200)
    assert run.returncode == 0 and f"resuming from the checkpoint of step {step} " in err, err
    tally("images that vanish", 1)
