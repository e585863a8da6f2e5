"""The benchmarks: each says what it does. What tpu.py counts: test_tpu.py."""

import importlib
import runpy
import sys

import pytest

from tests.runs import ROOT

BENCHMARKS = ROOT / "benchmarks"
# Parts of other benchmarks.
PARTS = {"torch_step.py", "torch_input.py", "tpu_program.py"}
SCRIPTS = sorted({path.name for path in BENCHMARKS.glob("*.py")} - PARTS)


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_what_it_does(load, monkeypatch, capsys, name):
    path = BENCHMARKS / name
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    summary = path.read_text().splitlines()[0].strip('"')
    assert told.startswith(f"usage: {name}") and summary in told


def test_the_table_takes_every_number_but_those_that_name_a_line(load):
    line = {"method": "byol", "k": 20, "seconds": 0.5, "by_kind": {"k": 3}, "device": "cpu"}
    assert load("run_all").numbers(line) == {"seconds": 0.5, "by_kind.k": 3}


@pytest.mark.extended
def test_a_benchmark_that_fails_is_named(load):
    run_all = load("run_all")
    with pytest.raises(run_all.Failed, match="step_time.py ended with 2"):
        run_all.run("step_time.py", ["--methods=none"])
