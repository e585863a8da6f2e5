"""Output that cannot be written ends no job, and nothing that is named reaches a terminal raw."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import unicodedata

import pytest
from rich.table import Table

from gsg_jax import console
from gsg_jax.console import (
    LastingFile,
    UserError,
    counting,
    explain,
    last_line,
    say,
    shown,
    standard_error,
)
from gsg_jax.report.compare import Comparison, show
from gsg_jax.run.record import Missing
from gsg_jax.train.display import RunDisplay
from tests.runs import ROOT, figures, last_step, tiny, wait_until

FORGED = "a\n\x1b[2J\x9b1A\rerror: forged\u202e\u2028\x07 [bold]"


@contextlib.contextmanager
def full(redirect):
    """Standard output or standard error on a full disk."""
    with open("/dev/full", "w") as file, redirect(file):
        yield
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # closing it would raise


def test_what_a_terminal_would_obey_is_shown_and_all_else_is_as_it_was():
    assert shown(FORGED) == (r"a\n\x1b[2J\x9b1A\rerror: forged\u202e\u2028\x07 [bold]")
    assert shown(os.fsdecode(b"caf\xe9")) == r"caf\udce9"
    plain = "Größe 写真\u3000\xa0👩\u200d👩 ü n\u0303"
    assert shown(plain) == plain
    for code in range(0x3000):
        if unicodedata.category(char := chr(code)) in ("Cc", "Zl", "Zp"):
            assert shown(char).isascii() and shown(char).isprintable()


def test_a_line_of_every_kind_stays_one_line_and_holds_no_escape(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY_SECONDS", 0.0)
    say(f"in {FORGED}", "two")
    status, text = explain(UserError(f"in {FORGED}"))
    say(f"error: {text}")
    display = RunDisplay(10, 0)
    display.warn(f"in {FORGED}")
    display.note(f"in {FORGED}")
    with counting(f"in {FORGED}", 3) as count:
        count(3)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 6 and status == 1
    assert all(c.isprintable() or c == "\n" for c in err)
    assert not any(line.startswith("error: forged") for line in err.splitlines())


def test_a_table_shows_names_keys_and_values_of_runs(capsys):
    missing = [Missing("figures", FORGED)]
    names, last = ["one", FORGED], {FORGED: [1.0, None]}
    show(Comparison(names, {FORGED: ["1", FORGED]}, last, FORGED, missing))
    err = capsys.readouterr().err
    assert all(c.isprintable() or c == "\n" for c in err) and r"\x1b" in err
    assert not any(line.lstrip().startswith("error") for line in err.splitlines())


def test_lines_tables_and_counts_on_a_full_disk_end_nothing():
    with full(contextlib.redirect_stderr):
        with pytest.raises(OSError):
            print("a line", file=sys.stderr, flush=True)
        say("a line")
        with RunDisplay(10, 0) as display, counting("images", 3) as count:
            display.warn("a warning")
            count(3)
        standard_error().print(Table("a", "b"))


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ({"job": "pretrain", "step": 4, "num_steps": 4}, 0),
        ({"job": "pretrain", "step": 3, "num_steps": 4}, 1),
        ({"job": "knn", "knn_top1": 0.5}, 1),
    ],
)
def test_a_lost_last_line_fails_what_is_not_kept_and_is_said(last, status, capsys):
    with full(contextlib.redirect_stdout):
        assert last_line(last) == status
    kind = "error" if status else "warning"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{kind}: standard output cannot be written (No space left on device)")
    assert json.loads(said[said.index("{") :]) == last


def test_a_reader_that_has_gone_is_not_tried_again():
    read, write = os.pipe()
    os.close(read)
    file = LastingFile(open(write, "w"))
    for _ in range(2):
        assert file.write("text\n") == 5
        file.flush()
    assert isinstance(file.error, BrokenPipeError)
    file.close()  # the text that was kept back goes to /dev/null


def test_a_closed_standard_error_is_silent():
    file = LastingFile(None)
    assert file.write("text") == 4 and not file.isatty()
    file.flush()


def run(*flags, **files):
    """A run with its files; the process, not waited for."""
    program = [sys.executable, "-m", "gsg_jax.main", *flags]
    return subprocess.Popen(
        program, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, text=True, **files
    )


SHORT = ("--config.run.num_steps=30", "--config.eval.knn_every_epochs=0")


@pytest.mark.extended
def test_a_reader_that_goes_away_and_a_full_log_disk_cost_no_step(images, tmp_path):
    read, write = os.pipe()
    gone = run(*tiny("byol", images, tmp_path / "gone", *SHORT), stdout=write, stderr=write)
    os.close(write)
    os.read(read, 1)  # head -c 1
    os.close(read)
    with open("/dev/full", "w") as full:
        no_room = run(*tiny("byol", images, tmp_path / "full", *SHORT), stdout=full, stderr=full)
        said = run(
            *tiny("byol", images, tmp_path / "said", *SHORT), stdout=full, stderr=subprocess.PIPE
        )
    err = said.communicate(timeout=300)[1]
    for name, process in (("gone", gone), ("full", no_room), ("said", said)):
        assert process.wait(timeout=300) == 0
        assert (tmp_path / name / "checkpoints" / "30").is_dir()
        kept = json.loads((tmp_path / name / "figures.json").read_text())
        assert kept["step"] == 30
    assert err.splitlines()[-1].startswith("warning: standard output cannot be written")
    assert "Traceback" not in err and "Exception ignored" not in err


@pytest.mark.extended
@pytest.mark.parametrize("is_under_nohup", [False, True])
def test_a_closed_terminal_saves_the_run_unless_nohup_keeps_it(images, tmp_path, is_under_nohup):
    flags = tiny("byol", images, tmp_path, *SHORT, "--config.run.checkpoint_every_steps=1000")
    ours, theirs = os.openpty()
    # The run inherits it; the tests themselves may be under nohup.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_under_nohup else signal.SIG_DFL)
    process = run(*flags, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    signal.signal(signal.SIGHUP, before)
    os.close(theirs)
    os.set_blocking(ours, False)

    def has_begun():
        with contextlib.suppress(OSError):
            os.read(ours, 100_000)  # a terminal that is not read makes its writers wait
        return last_step(tmp_path) >= 3

    wait_until(has_begun, process)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=300)
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert (saved == 30) == is_under_nohup and saved >= 3
    if not is_under_nohup:
        assert process.returncode == 1  # a stopped run whose last line nobody got
        resumed = run(*flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = resumed.communicate(timeout=300)
        assert figures(out)["step"] == 30
        assert f"resuming from the checkpoint of step {saved} " in err
