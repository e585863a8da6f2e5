"""The benchmarks: each says what it does, and the counted ones count right."""

import importlib
import json
import runpy
import subprocess
import sys

import pytest

from tests.runs import ROOT

BENCHMARKS = ROOT / "benchmarks"
# Parts of other benchmarks, which PyTorch runs.
PARTS = {"torch_step.py", "torch_input.py"}
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


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  %a.1 = f32[4,8]{1,0} all-reduce(%x), channel_id=1", {"all-reduce": 128}),
        ("  ROOT %a = (f32[], bf16[3]{0}, pred[2]) all-reduce(%x)", {"all-reduce": 4 + 6 + 2}),
        ("  %a = ((f32[2]{0}), (f32[4]{0})) all-gather-start(%x)", {}),
        ("  %a = f32[4]{0:T(8)S(1)} all-gather-done(%a)", {"all-gather": 16}),
        ("  %a = (f32[1]{0}, /*index=1*/f32[1]{0}) all-to-all(%x, %y)", {"all-to-all": 8}),
        ("  %a = f32[4]{0} fusion(%all-reduce.1), calls=%all-gather", {}),
    ],
)
def test_a_collective_counts_once_by_its_result(load, line, expected):
    assert load("growth").collective_bytes(line) == expected


def test_a_product_in_a_loop_is_noticed_and_one_axis_varies_at_a_time(load):
    growth = load("growth")
    inside = 'f32[2] dot(%x, %y), metadata={op_name="jit(f)/while/body/dot_general"}'
    outside = 'f32[2] dot(%x, %y), metadata={op_name="jit(f)/dot_general"}'
    assert growth.products_in_loops(f"%a = {inside}\n%b = {outside}") == 1
    points = growth.points_of({"batch": [8, 16], "devices": [2, 1, 4]})
    assert [tuple(point.values()) for point in points] == [(8, 2), (16, 2), (8, 1), (8, 4)]


def test_the_table_takes_every_number_but_those_that_name_a_line(load):
    line = {"method": "byol", "k": 20, "seconds": 0.5, "by_kind": {"k": 3}, "device": "cpu"}
    assert load("run_all").numbers(line) == {"seconds": 0.5, "by_kind.k": 3}


@pytest.mark.extended
def test_two_devices_share_the_work_and_exchange_the_gradient():
    flags = ("--recipe=default", "--batch=8", "--views=2", "--width=4", "--devices=2,1")
    command = [sys.executable, BENCHMARKS / "growth.py", "--method=simsiam", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    two, one = json.loads(done.stdout.splitlines()[-1])["results"]
    gradient = 4 * two["parameters"]
    assert gradient <= two["collective_bytes"] < 2 * gradient
    assert two["collective_bytes"] == sum(two["collective_bytes_by_kind"].values())
    assert one["collective_bytes"] == 0
    assert 0.5 * one["flops"] <= two["flops"] < 0.7 * one["flops"]
    assert two["products_in_loops"] == one["products_in_loops"] == 0


@pytest.mark.extended
def test_a_benchmark_that_fails_is_named(load):
    run_all = load("run_all")
    with pytest.raises(run_all.Failed, match="step_time.py ended with 2"):
        run_all.run("step_time.py", ["--methods=none"])
