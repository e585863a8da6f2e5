"""Tiny runs of the command line, in this process and in others."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from gsg_jax import main
from gsg_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
METHOD_CONFIGS = tuple(METHODS)

XLA_FLAGS = "--xla_backend_optimization_level=1"  # one device

# One stage, 4 channels, 12 x 12 views; write_images has 2 batches an epoch.
TINY = (
    "--config.model.width=4",
    "--config.model.num_stages=1",
    "--config.model.projector_hidden_width=8",
    "--config.model.projector_width=8",
    "--config.model.predictor_hidden_width=4",
    "--config.views.size=12",
    # They cost compile time, and have tests of their own.
    "--config.views.blur_probability=(0.0,)",
    "--config.views.solarize_probability=(0.0,)",
    "--config.data.batch_size=16",
    "--config.eval.knn_every_epochs=2",
    "--config.eval.knn_k=3",
    "--config.eval.batch_size=16",
    "--config.eval.few_label=false",
    "--config.eval.min_rank_share=0",
    "--config.eval.min_projection_std=0",
    "--config.run.num_steps=10",
    "--config.run.log_every_steps=3",
    "--config.run.checkpoint_every_steps=5",
    "--config.run.report=false",
)


def config(name: str, recipe: str = "") -> str:
    """The --config flag of a file of configs/."""
    return f"--config={ROOT / 'configs' / name}.py{recipe and ':' + recipe}"


def write_images(folder: pathlib.Path, num_train: int = 40, num_test: int = 8) -> pathlib.Path:
    """Writes a folder of random 14 x 14 images: train/ and test/, two classes each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("test", num_test)):
        for n in range(count):
            path = folder / split / ("even", "uneven")[n % 2] / f"{n:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, (14, 14, 3))
            pixels[:, 7:] += 150 * (n % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def on_images(folder: pathlib.Path) -> list[str]:
    """The flags of a run on a folder of write_images."""
    return ["--config.data.name=folder", f"--config.data.dir={folder}"]


def tiny(name: str, folder: pathlib.Path, workdir: pathlib.Path, *overrides: str) -> list[str]:
    """The flags of a tiny run; later overrides win."""
    small_queue = ["--config.method.queue_size=32"] if name == "moco_v2" else []
    flags = (*TINY, *small_queue, *on_images(folder), *overrides)
    given = {flag.partition("=")[0]: flag for flag in flags}
    return [config(name), f"--workdir={workdir}", *given.values()]


def job(name: str, *flags: str) -> list[str]:
    """The flags of a job; later ones win."""
    return [config(name), *{flag.partition("=")[0]: flag for flag in flags}.values()]


def call(*flags: str) -> tuple[int, str, str]:
    """Runs the command line in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(["gsg_jax", *flags])
    return status, out.getvalue(), err.getvalue()


def done(*flags: str) -> tuple[dict, str]:
    """Runs to the end in this process: its last line and standard error."""
    status, out, err = call(*flags)
    assert status == 0, err
    return figures(out), err


def refused(*flags: str, status: int = 1) -> str:
    """The one line "error: ..." that a command line ends with, in this process."""
    found, out, err = call(*flags)
    *before, last = err.splitlines()
    assert (found, out) == (status, "") and last.startswith("error: "), err
    assert all(line.strip() and not line.startswith(("error", "Trace")) for line in before), err
    return last


def warnings(standard_error: str) -> list[str]:
    """The lines of standard error that warn."""
    return [line for line in standard_error.splitlines() if line.startswith("warning: ")]


def logged(workdir: pathlib.Path) -> list[dict]:
    """The logged steps of a run."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def start(*flags: str, xla: str = XLA_FLAGS) -> subprocess.Popen:
    """Starts the command line in a process of its own, on one device."""
    return subprocess.Popen(
        [sys.executable, "-m", "gsg_jax.main", *flags],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*flags: str) -> tuple[dict, str]:
    """Runs to the end in a process of its own: its last line and standard error."""
    run = start(*flags)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return figures(out), err


@contextlib.contextmanager
def stop_after(num_steps: int = 3):
    """In place of stop_signals: a signal to stop that comes after so many steps."""
    asked = itertools.count()
    yield lambda: next(asked) >= num_steps


def wait_until(condition: Callable[[], bool], run: subprocess.Popen, seconds: float = 200) -> None:
    """Waits for a condition, or the end of the run."""
    deadline = time.monotonic() + seconds
    while not condition() and run.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_running(pid: int) -> bool:
    """Whether a process is neither gone nor a zombie, which its parent has yet to read."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def last_step(workdir: pathlib.Path) -> int:
    """The last step that a run has logged; 0 before the first."""
    with contextlib.suppress(FileNotFoundError):
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        return json.loads(lines[-1])["step"] if lines else 0
    return 0


def is_saving(workdir: pathlib.Path, since: float = 0.0) -> bool:
    """Whether a checkpoint is half written, whose writing began after `since`, by time.time()."""
    with contextlib.suppress(FileNotFoundError):
        unfinished = (workdir / "checkpoints").glob("*tmp*")
        return any(path.stat().st_mtime > since for path in unfinished)
    return False


def assert_same(workdir: pathlib.Path, last: dict, reference: pathlib.Path, wanted: dict) -> None:
    """What does not depend on the clock is the same as in another run."""
    assert last["state_digest"] == wanted["state_digest"]
    for name in ("metrics.jsonl", "baselines.json", "config.json"):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes()
    clock = {"views_per_second", "train_seconds"}
    same = {key: value for key, value in last.items() if key not in clock}
    assert same == {key: value for key, value in wanted.items() if key not in clock}


def figures(standard_output: str) -> dict:
    """The last line of standard output."""
    return json.loads(standard_output.splitlines()[-1])


def hashes(folder: pathlib.Path) -> dict[str, str]:
    """What every file below a folder holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
