"""A study runs each run once, in order, shared and resumed; and its report says what was found."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import pytest

from gsg_jax.config.load import load_config, override, setting_of
from gsg_jax.study import Cell, Study, running
from gsg_jax.study.cells import STUDY_FOLDER, load_study
from gsg_jax.study.command import main
from gsg_jax.study.results import results_of
from gsg_jax.study.running import claim
from tests.runs import ROOT, wait_until
from tests.study.studies import FakeRuns, write_study


@pytest.fixture
def fake(monkeypatch):
    """A function that makes runs up; returns the FakeRuns."""

    def use(**arguments) -> FakeRuns:
        runs = FakeRuns(**arguments)
        monkeypatch.setattr(running, "_call", runs)
        return runs

    return use


def study(capsys, path, folder, *flags: str) -> tuple[int, dict, str]:
    """Runs a study in this process: exit status, last line, standard error."""
    status = main([f"--study={path}", f"--workdir={folder}", *flags])
    out, err = capsys.readouterr()
    return status, json.loads(out.splitlines()[-1]) if out else {}, err


def test_whole_seeds_come_first_and_nothing_is_done_twice(tmp_path, fake, capsys):
    path, runs = write_study(tmp_path, "ab", (3, 5)), fake()
    asked = [run.overrides.get("eval.knn_pixels", True) for run in load_study(str(path)).runs]
    assert asked == [True, False, False, False]  # raw pixels have one score
    status, last, err = study(capsys, path, tmp_path / "w")
    assert status == 0 and runs.called == ["a-3", "b-3", "a-5", "b-5"]
    assert (last["num_done"], last["num_left"]) == (4, 0)
    assert "b-3: k-NN 50.00 %" in err and "2 of 4 runs are done" in err and " left" in err
    before = {file: file.read_bytes() for file in (tmp_path / "w").glob("*-*.json")}
    again = study(capsys, path, tmp_path / "w")
    assert again[:2] == (0, last) and len(runs.called) == 4
    assert {file: file.read_bytes() for file in before} == before


def test_a_failing_cell_is_named_at_the_end_and_the_others_go_on(tmp_path, fake, capsys):
    path, runs = write_study(tmp_path, "abc"), fake(failing=("b-0",))
    status, last, err = study(capsys, path, tmp_path / "w")
    assert status == 1 and runs.called == ["a-0", "b-0", "c-0"]
    assert err.splitlines()[-1] == "error: b-0 failed: the loss is nan at step 3"
    assert last["failed"] == {"b-0": "the loss is nan at step 3"} and last["num_left"] == 1
    assert "b-0 failed: the loss is nan at step 3." in (tmp_path / "w/study.md").read_text()
    runs.failing = ()
    status, last, _ = study(capsys, path, tmp_path / "w")
    assert status == 0 and runs.called[3:] == ["b-0"] and last["failed"] == {}
    record = json.loads((tmp_path / "w/b-0.json").read_text())
    assert record["attempts"] == 2 and "error" not in record


def test_a_claimed_run_is_left_to_its_holder_and_taken_over_if_that_ends(
    tmp_path, fake, capsys, monkeypatch
):
    path, runs, folder = write_study(tmp_path, "abc"), fake(), tmp_path / "w"
    folder.mkdir()
    held = claim(folder / "a-0.lock")
    assert held.__enter__() is not None
    waited = []

    def wait(_seconds):
        assert runs.called == ["b-0", "c-0"]
        waited.append(held.__exit__(None, None, None))

    monkeypatch.setattr(running.time, "sleep", wait)
    status, last, err = study(capsys, path, folder)
    assert status == 0 and len(waited) == 1 and last["num_left"] == 0
    assert runs.called == ["b-0", "c-0", "a-0"] and "waiting for a-0: other processes" in err


def test_a_stop_is_passed_on_and_ends_the_study_without_a_failure(tmp_path, fake, capsys):
    path = write_study(tmp_path, "abc")
    runs = fake()

    def stopped(words, log, held, stop):
        if "b-0" in words[1]:
            os.kill(os.getpid(), signal.SIGTERM)
            return {"step": 3, "num_steps": 8}
        return runs(words, log, held, stop)

    before = signal.getsignal(signal.SIGTERM)
    running._call, kept = stopped, running._call
    status, last, err = study(capsys, path, tmp_path / "w")
    running._call = kept
    assert signal.getsignal(signal.SIGTERM) is before
    assert status == 0 and runs.called == ["a-0"] and last["num_left"] == 2
    assert "b-0: not finished: stopped and saved" in err and last["failed"] == {}
    assert "the same command resumes the study" in err
    assert study(capsys, path, tmp_path / "w")[0] == 0 and runs.called == ["a-0", "b-0", "c-0"]


def test_some_seeds_and_cells_are_run_and_the_report_has_all(tmp_path, fake, capsys):
    path, runs = write_study(tmp_path, ["a", "b1", "b2"], (0, 1)), fake()
    _, last, _ = study(capsys, path, tmp_path / "w", "--cells=b*", "--seeds=1")
    assert runs.called == ["b1-1", "b2-1"] and (last["num_done"], last["num_left"]) == (2, 0)
    study(capsys, path, tmp_path / "w", "--cells=a")
    assert runs.called[2:] == ["a-0", "a-1"]
    status, last, err = study(capsys, path, tmp_path / "w", "--report_only")
    assert len(runs.called) == 4 and (last["num_done"], last["num_left"]) == (4, 2)
    status, last, err = study(capsys, path, tmp_path / "w", "--dry_run")
    assert (status, last["num_runs"], len(runs.called)) == (0, 6, 4)
    assert "a-1: done" in err and "b1-0: to do; 26 views an image; simsiam" in err
    assert "data.dir" not in err  # without --images


def test_a_report_needs_no_images(tmp_path, fake, capsys):
    path, images = write_study(tmp_path), tmp_path / "images"
    images.mkdir()
    fake()
    study(capsys, path, tmp_path / "w", f"--images={images}")
    images.rmdir()
    flags = (f"--images={images}", "--report_only")
    assert study(capsys, path, tmp_path / "w", *flags)[1]["num_left"] == 0
    with pytest.raises(SystemExit):
        study(capsys, path, tmp_path / "w", f"--images={images}")


def test_a_record_of_another_config_is_not_taken(tmp_path, fake, capsys):
    path = write_study(tmp_path)
    fake()
    study(capsys, path, tmp_path / "w")
    path.write_text(path.read_text().replace('"simsiam")', '"simsiam", {"run.num_epochs": 9})'))
    status, last, err = study(capsys, path, tmp_path / "w")
    assert status == 1 and last == {} and "run.num_epochs (None there, 9 here)" in err


def test_runs_before_and_after_a_change_of_ones_own_config_are_not_mixed(tmp_path, fake, capsys):
    own, text = tmp_path / "own.py", "from gsg_jax.configs.simsiam import get_config"
    own.write_text(text)
    path, runs = write_study(tmp_path, "a"), fake()
    path.write_text(path.read_text().replace('"simsiam"', repr(str(own))))
    assert study(capsys, path, tmp_path / "w")[1]["num_left"] == 0
    own.write_text(f"{text}  # with another rate")
    status, _, err = study(capsys, path, tmp_path / "w", "--seeds=0,1")
    assert status == 1 and "which differs in the text of the config (" in err
    own.write_text(text)
    assert study(capsys, path, tmp_path / "w")[0] == 0 and runs.called == ["a-0"]


def test_the_report_has_means_paired_differences_and_verdicts(tmp_path, fake, capsys):
    scores = {f"a-{n}": 0.5 + 0.01 * n for n in range(4)}
    scores |= {f"b-{n}": 0.52 + 0.01 * n + 0.001 * (n % 2) for n in range(4)}
    scores |= {f"c-{n}": 0.48 + 0.01 * n + 0.001 * (n % 2) for n in range(4)}
    path = write_study(tmp_path, "abc", (0, 1, 2, 3), ', evaluations=("linear",)')
    fake(scores=scores)
    _, last, _ = study(capsys, path, tmp_path / "w")
    assert last["verdicts"] == {"b against a": "holds here", "c against a": "does not"}
    page = (tmp_path / "w/study.md").read_text()
    assert page.startswith("# Is b better than a?\n\nA question for the tests.\n")
    # By hand: differences 2.0, 2.1, 2.0, 2.1; deviation 0.0577; t 3.182.
    assert "| b | a | 4 | +2.05 ± 0.09 | holds here |" in page
    assert "| a | 4 | 51.50 ± 2.05 | 7.0 | 0.75 |" in page
    assert "k-NN of untrained encoders: 12.50 %." in page and "Commits: abc1234." in page
    whole = json.loads((tmp_path / "w/study.json").read_text())
    assert [cell["scores"]["2"] for cell in whole["cells"]] == [0.52, 0.54, 0.5]
    record = json.loads((tmp_path / "w/b-1.json").read_text())
    assert record["figures"]["linear_top1"] == 0.25 and record["views"] == 8 * 2 * 32
    assert record["processor_seconds_per_view"] == 6 / 200
    assert record["knn_curve"] == [[0, 0.125], [256, 0.531 / 2], [512, 0.531]]


def test_a_record_without_the_evaluations_that_a_study_asks_for_is_not_finished(
    tmp_path, fake, capsys
):
    runs, folder = fake(), tmp_path / "w"
    study(capsys, write_study(tmp_path, "ab"), folder)
    asks = write_study(tmp_path, "ab", more=', evaluations=("linear",), metric="linear_top1"')
    assert study(capsys, asks, folder, "--report_only")[1]["num_left"] == 2
    _, last, _ = study(capsys, asks, folder)
    assert (last["num_done"], last["num_left"]) == (2, 0) and len(runs.called) == 4
    assert json.loads((folder / "a-0.json").read_text())["figures"]["linear_top1"] == 0.25


def test_the_charts_are_pictures_with_a_line_for_each_cell(tmp_path, fake, capsys):
    fake()
    study(capsys, write_study(tmp_path, "ab"), tmp_path / "w")
    for name in ("knn_views", "knn_work", "rank", "deviation"):
        root = ElementTree.fromstring((tmp_path / f"w/{name}.svg").read_text())
        texts = [element.text for element in root.iter() if element.text]
        assert {"a", "b"} <= set(texts) and any("light-dark" in text for text in texts)
        assert f"]({name}.svg)" in (tmp_path / "w/study.md").read_text()


def test_the_charts_of_a_sweep_have_the_best_of_each_group(tmp_path, fake, capsys):
    fake(scores={"a-0": 0.6, "b-0": 0.7})
    path = write_study(tmp_path, "abc", (0,), ", is_sweep=True")
    _, last, err = study(capsys, path, tmp_path / "w")
    assert last["best"] == {"": "b"} and "the best of all is b" in err
    chart = ElementTree.fromstring((tmp_path / "w/knn_views.svg").read_text())
    assert {"a", "b", "c"} & {element.text for element in chart.iter()} == {"b"}


def test_a_sweep_is_sorted_in_its_groups_and_names_the_best():
    cells = [Cell(name, "simsiam", group=name[0]) for name in ("x1", "x2", "y1", "y2", "y3")]
    scores = {"x1": 0.4, "x2": 0.5, "y1": 0.3, "y3": 0.2}
    records = [
        {"cell": name, "seed": 0, "figures": {"knn_top1": score}} for name, score in scores.items()
    ]
    results = results_of(Study(cells, is_sweep=True), records)
    assert [result.cell.name for result in results] == ["x2", "x1", "y1", "y3", "y2"]
    assert math.isnan(results[-1].score.mean)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Study([])", "has 0 cells and 1 seeds"),
        ("Study([Cell('a/b', 'simsiam')])", "a name has letters"),
        ("Study([Cell('a', 'simsiam')] * 2)", "cell a is given twice"),
        ("Study([Cell('a', 'simsiam')], baseline='b')", "a is compared with 'b'"),
        ("Study([Cell('a', 'simsiam', {'run.epochs': 2})])", "there is no such key; did you mean"),
        ("Study([Cell('a', 'simsiam', {'optim.learning_rate': -1.0})])", "must be a number from 0"),
        ("Study([Cell('a', 'knn')])", "not a pretraining"),
        ("Study([Cell('a', 'simsiam', {'run.seed': 3})])", "give the study its seeds"),
        ("Study([Cell('a', 'simsiam')], metric='knn_tpo1')", "has knn_top1, few_label_1"),
        ("Study([Cell('a', 'simsiam')], evaluations='linear')", "give a tuple"),
        ("Study([Cell('a', 'simsiam')], evaluations=('linera',))", "did you mean linear"),
        ("Study([Cell('a', 'simsiam')], evaluations=('byol',))", "byol is a pretraining"),
        ("3", "must return a gsg_jax.study.Study"),
        ("{}['cells']", "line 3: KeyError: 'cells'"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line_before_anything_runs(tmp_path, capsys, text, said):
    path = tmp_path / "mine.py"
    head = "from gsg_jax.study import Cell, Study\n"
    path.write_text(f"{head}def get_study():\n    return {text}\n")
    status, last, err = study(capsys, path, tmp_path / "w")
    assert (status, last, err.count("\n")) == (2, {}, 1) and said in err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--study=gian"], "did you mean gain?"),
        (["--study=~nosuchuser/x"], "--study=~nosuchuser/x: "),
        (["--study=gain:cifra10"], "did you mean 'cifar10'?"),
        (["--study=gain", "--cells=vicreg"], "--cells=vicreg: no such cell; cells are simsiam,"),
        (["--study=gain", "--seeds=1,1"], "takes whole numbers, each once"),
        (["--study=gain", "--images=nowhere"], "nowhere: there is no such folder"),
        (["--study=gain", "--epochs=0"], "0: takes a number above 0"),
        (["--study=gain", "--config.model.wdth=8"], "did you mean --config.model.width?"),
        (["--study=gain", "--images="], "argument --images: is empty: give a path"),
        (["--study=gain", "--cells="], "argument --cells: is empty: give some"),
        (["--study=gain", "--config.run.seed=7"], "--config.run.seed=7: give --seeds instead"),
        (["--study=gain", "--dtype=bfloat16"], "unrecognized argument: --dtype=bfloat16"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(tmp_path, capsys, flags, said):
    try:
        status = main([*flags, f"--workdir={tmp_path}/w"])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and said in err.splitlines()[-1]


def test_flags_change_keys_and_lengths_of_every_cell():
    changes = dict(map(setting_of, ("model.dtype=bfloat16", "model.recompute=true")))
    loaded = load_study("gain:cifar10", changes=changes, length=0.1)
    configs = []
    for run in loaded.runs[:6]:
        configs.append(load_config(run.cell.config))
        override(configs[-1], run.overrides)
    assert [config.run.num_epochs for config in configs] == [20, 20, 40, 20, 20, 40]
    assert [config.eval.knn_every_epochs for config in configs] == [1, 1, 2, 1, 1, 2]
    assert {config.model.dtype for config in configs} == {"bfloat16"}
    assert all(config.model.recompute is True for config in configs)
    assert [run.view_epochs for run in loaded.runs[:3]] == [40, 80, 80]


@pytest.mark.parametrize("path", sorted(STUDY_FOLDER.glob("*.py")), ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", ["", ":cifar10"])
def test_every_study_of_the_package_is_right_and_tells_its_question(path, recipe):
    loaded = load_study(path.stem + recipe)
    assert f"gsg-jax study --study={path.stem}" in loaded.text
    assert f"{len(loaded.study.cells)} cells" in loaded.text.replace("\n", " ")
    assert loaded.study.is_sweep or len(loaded.study.seeds) > 1
    assert load_study(path.stem, is_toy=True).runs


@pytest.mark.extended
def test_a_study_killed_at_any_moment_goes_on_without_repeating_a_finished_run(tmp_path):
    path, folder = write_study(tmp_path, "abc"), tmp_path / "w"
    command = [sys.executable, "-m", "gsg_jax", "study", f"--study={path}", "--toy"]

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            [*command, f"--workdir={folder}"],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finished() -> dict[pathlib.Path, tuple]:
        files = folder.glob("[abc]-0.json")
        return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    moments = {
        "the first run has its log": lambda: (folder / "a-0.log").exists(),
        "the first run trains": lambda: (folder / "a-0/metrics.jsonl").exists(),
        "the first run is finished": lambda: (folder / "a-0.json").exists(),
        "the second run trains": lambda: (folder / "b-0/metrics.jsonl").exists(),
    }
    for moment, is_there in moments.items():
        process = start()
        wait_until(is_there, process)
        done = finished()
        if "second" in moment:  # its run goes on, and the next study waits for it
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.1)
        assert done.items() <= finished().items(), moment
    process = start()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert json.loads(out)["num_done"] == 3 and done.items() <= finished().items()
    assert len(finished()) == 3


def test_the_study_of_the_documentation_is_right(tmp_path):
    page = (ROOT / "docs/studies.md").read_text()
    (tmp_path / "local.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    loaded = load_study(str(tmp_path / "local.py"))
    assert loaded.text.startswith("Do local views help") and len(loaded.runs) == 6
    names = {path.stem for path in STUDY_FOLDER.glob("*.py")}
    assert {
        line.split("`")[1]
        for line in page.splitlines()
        if line[:3] == "| `" and line[3:].split("`")[0] in names
    } == names
