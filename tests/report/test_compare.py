"""Runs side by side: only differing keys are shown, and nothing is made up."""

import io
import json
import pathlib

import pytest
from rich.console import Console

from gsg_jax.config.load import as_json
from gsg_jax.config.recipes import pretraining
from gsg_jax.report import compare
from gsg_jax.report.curves import curves_of_several
from gsg_jax.run.record import read_run_record


def write_run(folder: pathlib.Path, losses: list[float], **overrides) -> pathlib.Path:
    """A run's folder with these logged losses and config keys."""
    folder.mkdir(parents=True)
    config = pretraining("default")
    config.update_from_flattened_dict(overrides)
    (folder / "config.json").write_text(as_json(config))
    lines = [{"step": n, "epoch": n / 4, "loss": loss} for n, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "throughput.jsonl").write_text('{"step": 1, "views_per_second": 50.0}\n')
    return folder


def test_only_keys_that_differ_are_shown(tmp_path):
    a = write_run(tmp_path / "a", [1.0, 0.5], **{"run.seed": 3, "method.ema_decay": 0.5})
    b = write_run(tmp_path / "b", [1.0, 0.25], **{"run.seed": 4, "method.ema_decay": 0.5})
    found = compare.compare([read_run_record(folder) for folder in (a, b)])
    assert found.differences == {"run.seed": ["3", "4"]}
    assert found.figures["loss"] == [0.5, 0.25]
    assert found.figures["step"] == [2, 2]
    assert found.names == ["a", "b"] and found.missing == []


def test_a_key_or_figure_that_one_run_lacks_is_none(tmp_path):
    a = write_run(tmp_path / "a", [1.0])
    b = write_run(tmp_path / "b", [1.0], **{"method.name": "simclr"})
    config = json.loads((b / "config.json").read_text())
    config["method"]["temperature"] = 0.5
    (b / "config.json").write_text(json.dumps(config))
    found = {"figures": {"probe": {"loss": 0.75}}, "about": {"encoder": "pixels"}}
    (b / "evaluation.json").write_text(json.dumps(found))
    found = compare.compare([read_run_record(folder) for folder in (a, b)])
    assert found.differences == {
        "method.name": ["", "simclr"],
        "method.temperature": ["none", "0.5"],
    }
    assert found.figures["evaluation of pixels: loss"] == [None, 0.75]
    assert found.figures["loss"] == [1.0, 1.0]


def test_the_best_of_a_row_is_marked_where_better_is_known():
    rows = {
        "knn_top1": ([0.5, 0.75, None], ["0.5", "★ 0.75", ""]),
        "train_seconds": ([5.0, 3.0, 3.0], ["5", "★ 3", "★ 3"]),
        "evaluation of trained: linear_top1": (
            [0.5, float("nan"), 0.25],
            ["★ 0.5", "not a number", "0.25"],
        ),
        "few_label_5": ([0.5, 0.25, 0.125], ["★ 0.5", "0.25", "0.125"]),
        "few_label_5_error": ([0.5, 0.25, 0.125], ["0.5", "0.25", "0.125"]),
        "knn_top1_pixels": ([0.5, 0.75, 0.25], ["0.5", "0.75", "0.25"]),
        "knn_top5": ([0.5, 0.5, 0.5], ["0.5", "0.5", "0.5"]),
        "loss": ([0.5, 0.75, 0.25], ["0.5", "0.75", "0.25"]),
    }
    figures = {name: values for name, (values, _) in rows.items()}
    found = compare._rows(compare.Comparison(["a", "b", "c"], {}, figures, "", []))
    assert [list(cells) for _, *cells in found] == [cells for _, cells in rows.values()]


def test_different_lengths_are_said(tmp_path):
    a = write_run(tmp_path / "a", [1.0, 0.5, 0.25])
    b = write_run(tmp_path / "b", [1.0, 0.5])
    found = compare.compare([read_run_record(folder) for folder in (a, b)])
    assert found.lengths == (
        "The runs were not trained equally long: a 3 steps (0.75 epochs), b 2 steps (0.5 epochs)."
    )
    text = io.StringIO()
    compare.show(found, Console(file=text, width=200))
    assert found.lengths in text.getvalue()
    narrow = io.StringIO()
    compare.show(found, Console(file=narrow, width=30))
    assert found.lengths in narrow.getvalue()  # a name in it cannot begin a line
    c = write_run(tmp_path / "c", [3.0, 2.0, 1.0])
    same = compare.compare([read_run_record(folder) for folder in (a, c)])
    assert same.lengths == ""


def test_the_four_pairs_of_guided_runs_share_a_chart(tmp_path):
    folders = [write_run(tmp_path / name, [1.0, 0.5]) for name in "abc"]
    for folder in folders[:2]:
        lines = [
            {"step": n, "epoch": n / 4} | {f"closest_{pair}": 0.25 for pair in (11, 12, 21, 22)}
            for n in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = curves_of_several([read_run_record(folder) for folder in folders], ["a", "b", "c"])
    (chart,) = [chart for chart in found if "closest" in chart.title.lower()]
    pairs = ("views 1 and 1", "views 1 and 2", "views 2 and 1", "views 2 and 2")
    assert [name for name, _, _ in chart.legend] == [f"{run}: {p}" for run in "ab" for p in pairs]
    looks = [look for _, *look in chart.legend]
    assert looks[:4] == [[n, ""] for n in range(4)]  # a colour for each pair, dashes for each run
    assert looks[4:] == [[n, "6 3"] for n in range(4)]


def test_the_page_lies_in_the_first_run_unless_told(tmp_path, capsys):
    a, b = (write_run(tmp_path / name, [1.0, 0.5]) for name in "ab")
    assert compare.main([str(a), str(b)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["page"] == str(a / "compare.html") and (a / "compare.html").exists()


def test_names_are_the_shortest_ends_that_differ():
    folders = [pathlib.Path(path) for path in ("/x/one/run", "/x/two/run", "/x/two/other")]
    assert compare.run_names(folders) == ["one/run", "two/run", "two/other"]
    assert compare.run_names(folders[1:]) == ["run", "other"]


def test_the_command_prints_tables_and_writes_a_page(tmp_path, capsys):
    a = write_run(tmp_path / "a [red]", [1.0, 0.5, 0.25])
    b = write_run(tmp_path / "b<i>", [1.0, 0.125, float("nan")], **{"run.seed": 7})
    assert compare.main([str(a), str(b), f"--output={tmp_path / 'pages' / 'both.html'}"]) == 0
    out, err = capsys.readouterr()
    assert "Where the configs differ" in err and "a [red]" in err
    assert "loss is not a finite number at 1 of the 3 logged steps" in err
    last = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert [run["loss"] for run in last["runs"].values()] == [0.25, None]
    assert last["differences"] == {"run.seed": ["0", "7"]}
    page = (tmp_path / "pages" / "both.html").read_text()
    assert page.index('id="differences"') < page.index('id="figures"') < page.index('id="curves"')
    assert "<i>" not in page and "b&lt;i&gt;" in page
    assert "<figcaption>Loss <span" in page


def test_the_speed_is_the_mean_of_the_run(tmp_path):
    folder, other = (write_run(tmp_path / name, [1.0]) for name in "ab")
    lines = [
        {"step": n, "views_per_second": speed, "interval_seconds": seconds, "train_seconds": 9.0}
        for n, speed, seconds in ((1, 10.0, 1.0), (2, 100.0, 3.0), (3, 40.0, 2.0))
    ]
    (folder / "throughput.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare.compare([read_run_record(path) for path in (folder, other)])
    assert found.figures["views_per_second"] == [65.0, 50.0]  # 390 views in 6 seconds
    text = io.StringIO()
    compare.show(found, Console(file=text))
    assert "The configs are the same." in text.getvalue()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "give two or more"),
        (["a", "~/b/../a"], "given twice"),
        (["a", "b", "--output", "b"], "is a folder"),
        (["a", "~nosuchuser/b"], "whole path"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, monkeypatch, capsys, names, said):
    for name in "ab":
        write_run(tmp_path / name, [1.0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        compare.main(names)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    a = write_run(tmp_path / "a", [1.0])
    flags = [str(a), str(tmp_path / "nothing"), f"--output={tmp_path / 'page.html'}"]
    assert compare.main(flags) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and "holds no run" in err
    assert not (tmp_path / "page.html").exists()
