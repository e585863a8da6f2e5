"""Faults that people have met: links, names, changed images, planted files, signals, lost output.

Each try is judged alone, and the table counts them.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from gsg_jax.run.files import partial_path
from gsg_jax.run.workdir import WRITTEN
from gsg_jax.train import loop
from tests.faults.conftest import FULL
from tests.faults.forks import fork
from tests.faults.test_malformed import STOPPED, fault_of, judge
from tests.runs import call, done, figures, hashes, last_step, stop_after, tiny, write_images

pytestmark = pytest.mark.extended
FORGED = ("\x1b[2J", "\n\rerror: forged", "\x9b1A", "\u2028", "\u202e", os.fsdecode(b"\xff"))


@pytest.fixture
def untrained(monkeypatch):
    """A run is recorded as it begins, and does not train."""

    def pretraining(*args):
        record = args[7]
        return SimpleNamespace(run=lambda: record() or STOPPED)

    monkeypatch.setattr(loop, "Pretraining", pretraining)


def name_tries():
    for forged in FORGED:
        for place in ("class", "image", "workdir", "value", "folder"):
            yield f"{place} {forged!r}", (place, forged)


@pytest.mark.usefixtures("untrained")
def test_names_that_a_terminal_would_obey_reach_it_escaped(tmp_path, tally):
    def attempt(name, what):
        place, forged = what
        top = tmp_path / str(len(list(tmp_path.iterdir())))
        images = write_images(top / (f"a{forged}" if place == "folder" else "images"), 8, 4)
        if place == "class":
            (images / "train" / "even").rename(images / "train" / f"a{forged}")
        if place == "image":
            (images / "train" / "even" / f"a{forged}.png").write_bytes(b"damaged")
        workdir = top / (f"b{forged}" if place == "workdir" else "run")
        value = [f"--config.data.train_split=c{forged}"] if place == "value" else []
        status, out, err = call(*tiny("simsiam", images, workdir, *value))
        text = out.replace("\n", "") + err.replace("\n", "")
        lines = err.splitlines()
        if not text.isprintable() or any(line.startswith("error: forged") for line in lines):
            return f"raw: {err!r}"
        return None if status == 0 or lines[-1].startswith("error: ") else err

    judge("name that a terminal would obey", name_tries(), tally, attempt)


def changes():
    odd = pathlib.Path("train", "uneven", "000.png")
    even = pathlib.Path("train", "even", "000.png")
    yield "one of another class", lambda top: (top / even).rename(top / odd)
    yield "a test image gone", lambda top: (top / "test" / "even" / "000.png").unlink()


@pytest.mark.usefixtures("untrained")
def test_images_that_changed_are_told_when_a_run_resumes(tmp_path, tally):
    def attempt(name, change):
        top = tmp_path / name
        images = write_images(top / "images", 20, 4)
        flags = tiny("simsiam", images, top / "run")
        done(*flags)
        change(images)
        before = hashes(top)
        status, out, err = call(*flags)
        if (status, out) != (1, "") or "the images or JAX's settings are not those" not in err:
            return f"status {status}: {err}"
        if hashes(top) != before:
            return "something was written"
        _, err = done(*flags, "--config.run.accept_changes=true")
        return None if "it resumes with other numbers" in err else err

    judge("images that change before a resume", changes(), tally, attempt)


def test_links_planted_in_a_workdir_are_not_written_through(tmp_path, tally, monkeypatch):
    images = write_images(tmp_path / "images")
    (images / "train" / "even" / "damaged.png").write_text("no image")
    flags = tiny("simsiam", images, tmp_path / "made", "--config.run.num_steps=6")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_signals", stop_after)
        done(*flags)
    names = ("config.json", "identity.json", "run.lock", "report.html", *WRITTEN)
    files = [name for name in names if "." in name]
    partials = [partial_path(pathlib.Path(name)).name for name in files]

    def attempt(name, _):
        workdir, mine = tmp_path / f"run {name}", tmp_path / f"mine {name}"
        shutil.copytree(tmp_path / "made", workdir)
        is_there = (workdir / name).exists() and name != "left_out.txt"
        content = (workdir / name).read_bytes() if is_there else b"mine"
        mine.write_bytes(content)
        (workdir / name).unlink(missing_ok=True)
        (workdir / name).symlink_to(mine)
        fault = fault_of([*flags, f"--workdir={workdir}"])
        return fault or (None if mine.read_bytes() == content else "the file was changed")

    judge("link planted in a workdir", [(n, None) for n in [*files, *partials]], tally, attempt, 4)


def damages():
    rng = random.Random(3)
    for kind in ("JPEG", "PNG", "WEBP"):
        for part in (0.3, 0.6, 0.9):
            yield f"{kind} cut at {part}", (kind, lambda x, p=part: x[: int(len(x) * p)])
        yield f"{kind} zeros", (kind, lambda x: x[: len(x) // 2] + bytes(len(x) - len(x) // 2))
        yield f"{kind} noise", (kind, lambda x: x[: len(x) // 2] + rng.randbytes(len(x) // 2))


def test_images_that_training_finds_damaged_are_replaced(tmp_path, tally, monkeypatch):
    monkeypatch.setattr("gsg_jax.data.folder.FULL_CHECK_LIMIT", 0)

    def attempt(name, what):
        kind, damage = what
        place = tmp_path / name
        top = write_images(place / "images", 24, 4)
        path = top / "train" / "even" / "000.png"
        Image.effect_noise((60, 60), 90).convert("RGB").save(path, kind)
        path.write_bytes(damage(path.read_bytes()))
        flags = tiny("simsiam", top, place / "run", "--config.data.crop=host")
        status, out, err = call(*flags, "--config.eval.knn_every_epochs=0")
        if status:
            return err
        try:
            with Image.open(path) as image:
                image.load()
        except OSError:
            named = (place / "run" / "left_out.txt").read_text()
            is_named = str(path) in named and figures(out)["num_left_out"] == 1
            return None if is_named else f"not named: {err}"
        return None  # Pillow reads it

    judge("image that is damaged", damages(), tally, attempt, 5)


# tests/train/test_resume.py sends the others once.
SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT) if FULL else (signal.SIGHUP,)
FLAGS = (
    "--config.run.num_steps=60",
    "--config.run.checkpoint_every_steps=20",
    "--config.run.log_every_steps=1",
    "--config.eval.knn_every_epochs=20",
    "--config.run.report=true",
)


def test_signals_and_lost_output_cost_nothing(images, tmp_path, tally):
    def run(workdir, act=None, err=None):
        out, err = workdir.with_suffix(".out"), err or workdir.with_suffix(".err")
        for path in (out, err):
            if path.is_file():
                path.unlink()
        process = fork(tiny("simsiam", images, workdir, *FLAGS), out, err)
        if act:
            act(process, err)
        process.join(200)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode, out.read_text() if out.exists() else "", err

    status, out, err = run(tmp_path / "whole")
    assert status == 0, err.read_text()
    wanted, rng = figures(out)["state_digest"], random.Random(0)

    def signalled(name, what):
        number, goal = what

        def act(process, _):
            while last_step(workdir) < goal and process.is_alive():
                time.sleep(0.002)
            time.sleep(rng.choice([0, 0.2, 1]) * rng.random())  # its report, perhaps
            if process.is_alive():
                os.kill(process.pid, number)

        workdir = tmp_path / name
        status, out, err = run(workdir, act)
        if status not in (0, -number) or "Traceback" in err.read_text():
            return f"status {status}: {err.read_text()}"
        if status == 0 and (step := figures(out)["step"]) > 0:
            if not (workdir / "checkpoints" / str(step)).is_dir():
                return f"step {step} is not saved"
        status, out, err = run(workdir)
        if status or figures(out)["state_digest"] != wanted:
            return f"status {status}: {err.read_text()}"
        return None if (workdir / "report.html").is_file() else "no report"

    tries = [(f"{g} {s.name}", (s, g)) for g in ((5, 0, 40, 60) if FULL else (5,)) for s in SIGNALS]
    judge("signal at a random moment", tries, tally, signalled)

    def lost(name, kind):
        workdir, err = tmp_path / name, pathlib.Path("/dev/full")
        if kind == "a pipe":
            err = tmp_path / f"{name}.pipe"
            os.mkfifo(err)

            def reader():
                with err.open() as lines:
                    lines.readline()

            threading.Thread(target=reader, daemon=True).start()
        status, out, _ = run(workdir, err=err)
        kept = json.loads((workdir / "figures.json").read_text())
        is_same = status == 0 and figures(out)["state_digest"] == wanted
        return None if is_same and kept == figures(out) else f"status {status}"

    tries = [("reader of the log that goes", "a pipe"), ("log on a full disk", "")]
    judge("output that cannot be written", tries, tally, lost, 1)
