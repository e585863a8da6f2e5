"""wandb gets a copy of the logged steps, and nothing that it does costs the run a step."""

import os
import subprocess
import sys

import pytest

from gsg_jax.run import wandb as copies
from gsg_jax.run.files import read_lines
from gsg_jax.run.wandb import open_wandb
from tests.run.test_metrics import write
from tests.runs import refused, tiny
from tests.small import small_config

MINE = "--config.run.wandb_project=mine"


def project():
    config = small_config("simsiam")
    config.run.wandb_project = "mine"
    return config


class StandIn:
    """The module and a run of wandb, which may fail at its beginning or at a step."""

    def __init__(self, fails_at=None):
        self.fails_at, self.got, self.exit_code = fails_at, {}, None

    def init(self, **given):
        self.given = given
        if self.fails_at == "init":
            raise ConnectionError("no route\nto anywhere")
        return self

    def Settings(self, **given):  # noqa: N802
        return given

    def log(self, figures, *, step, commit):
        assert commit
        if step == self.fails_at:
            raise ConnectionResetError("Connection lost")
        self.got[step] = figures

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def stand_in(monkeypatch):
    def give(fails_at=None):
        module = StandIn(fails_at)
        monkeypatch.setattr(copies, "import_wandb", lambda: module)
        return module

    return give


def test_wandb_gets_every_logged_step_in_one_run_however_often_it_is_resumed(tmp_path, stand_in):
    ids = []
    for first_step, steps in ((0, [1, 2]), (2, [3])):
        module = stand_in()
        with open_wandb(project(), tmp_path, is_new=not first_step) as copy:
            write(tmp_path, first_step, steps, copy=copy)
        assert [*module.got] == steps and module.exit_code == 0
        assert module.got[steps[0]]["loss"] == -1 / 3 ** steps[0]
        assert module.got[steps[0]]["views_per_second"] == 10
        ids.append(module.given["id"])
    assert ids == [(tmp_path / "wandb_id").read_text()] * 2
    assert module.given["resume"] == "allow" and module.given["project"] == "mine"


def test_a_failure_is_said_once_and_costs_no_line(tmp_path, stand_in, capsys):
    module = stand_in(fails_at=2)
    with open_wandb(project(), tmp_path, is_new=True) as copy:
        write(tmp_path, 0, [1, 2, 3], copy=copy)
    assert [*module.got] == [1]
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Connection lost" in said


def test_a_new_run_that_wandb_refuses_ends_in_a_line_and_an_older_one_continues(
    images, tmp_path, stand_in, capsys
):
    stand_in(fails_at="init")
    said = refused(*tiny("simsiam", images, tmp_path / "run", MINE))
    assert "wandb cannot begin (no route)" in said and "WANDB_MODE=offline" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with open_wandb(project(), tmp_path, is_new=False) as copy:
        assert copy is None
    assert "wandb has failed (no route): the run continues" in capsys.readouterr().err


def test_a_run_that_fails_is_no_finished_one_of_wandb(tmp_path, stand_in):
    module = stand_in()
    with pytest.raises(ZeroDivisionError), open_wandb(project(), tmp_path, is_new=True):
        _ = 1 / 0
    assert module.exit_code == 1


def test_without_the_package_there_is_one_line_before_anything_is_made(
    images, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = refused(*tiny("simsiam", images, tmp_path / "run", MINE))
    assert "pip install 'gsg_jax[wandb]'" in said and not (tmp_path / "run").exists()


@pytest.mark.extended
def test_wandb_itself_takes_an_offline_run_and_prints_nothing_on_standard_output(tmp_path):
    pytest.importorskip("wandb")
    code = (
        "import pathlib, sys, time\n"
        "from tests.run.test_wandb import *\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for first_step, steps in ((0, [1, 2]), (1, [2, 3])):\n"
        "    with open_wandb(project(), folder, is_new=not first_step) as copy:\n"
        "        write(folder, first_step, steps, copy=copy)\n"
        "    time.sleep(1.1)\n"  # wandb's folders are named by the second
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    name = (tmp_path / "wandb_id").read_text()
    assert len([*tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")]) == 2
