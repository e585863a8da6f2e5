"""What a run's folder lacks is said, and the rest is read."""

import json

import pytest

from gsg_jax.config.recipes import pretraining
from gsg_jax.console import UserError
from gsg_jax.report.curves import curves, curves_of_several
from gsg_jax.run.record import FILES, read_run_record

LINES = [{"step": 5, "epoch": 0.5, "loss": -0.25}, {"step": 10, "epoch": 1.0, "loss": -0.5}]


def write_run(folder, **files):
    """A run's folder with these files."""
    folder.mkdir()
    (folder / "config.json").write_text(pretraining("default").to_json())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    clock = {"step": 10, "views_per_second": 12.5, "train_seconds": 3.0}
    (folder / "throughput.jsonl").write_text(json.dumps(clock) + "\n")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_a_whole_run_lacks_nothing(tmp_path):
    record = read_run_record(write_run(tmp_path / "run"))
    assert record.missing == ()
    assert record.lines == LINES
    assert record.clock[0]["views_per_second"] == 12.5


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "throughput.jsonl"])
def test_each_missing_file_is_named_and_the_others_are_read(tmp_path, name):
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    record = read_run_record(folder)
    assert len(record.missing) == 1
    what, section = FILES[name]
    assert record.missing[0].text == f"{name} is missing: without it the page lacks {what}."
    assert record.missing[0].section == section
    whole = {
        "config.json": bool(record.config),
        "metrics.jsonl": bool(record.lines),
        "throughput.jsonl": bool(record.clock),
    }
    assert whole == {other: other != name for other in whole}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("metrics.jsonl", '{"step": 5}\nnot json\n'),
        ("throughput.jsonl", '{"step": "x"}\n'),
        ("baselines.json", "\x00"),
        ("baselines.json", '{"knn_top1_pixels": "much"}'),
        ("evaluation.json", "[" * 100_000),
        ("evaluation.json", '{"figures": 3}'),
        ("starts.jsonl", '{"command": "a"}\n{"command": 3}\n'),
        ("starts.jsonl", "{}\n"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, text):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(text)
    (part,) = read_run_record(folder).missing
    assert name in part.text and "damaged" in part.text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_run_record(tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        read_run_record(tmp_path / "nowhere")


def test_every_logged_figure_has_a_curve_over_the_epochs(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = [line | {"closest_11": 0.25, "closest_22": 0.5, "of_the_method": 3} for line in LINES]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {chart.title: chart for chart in curves(read_run_record(folder))}
    assert list(found) == ["Loss", "Closest of the four view pairs", "Throughput", "of_the_method"]
    assert found["Loss"].head == ("epoch", "loss")
    assert found["Loss"].rows == (("0.5", "-0.25"), ("1", "-0.5"))
    assert found["Throughput"].rows == (("1", "12.5"),)  # the clock's lines have steps alone
    pairs = found["Closest of the four view pairs"]
    assert pairs.head == ("epoch", "views 1 and 1", "views 2 and 2")
    assert pairs.rows[0] == ("0.5", "25", "50") and pairs.unit.startswith("%")
    assert all(chart.unit for chart in found.values())


def test_runs_without_epochs_are_drawn_over_steps(tmp_path):
    folder = write_run(tmp_path / "run")
    other = write_run(tmp_path / "other")
    (other / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
    records = [read_run_record(path) for path in (folder, other)]
    (loss, _) = curves_of_several(records, ["a", "b"])
    assert loss.head == ("step", "a", "b")
    assert loss.rows == (("4", "", "1"), ("5", "-0.25", ""), ("10", "-0.5", ""))
