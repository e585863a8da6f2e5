"""A person sees a bar on a terminal, and whole plain lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from gsg_jax import console as progress
from gsg_jax.console import counting
from gsg_jax.train.display import RunDisplay

VALUES = {
    "epoch": 1.5,
    "loss": -0.91234,
    "learning_rate": 0.1,
    "closest_11": 0.25,
    "closest_12": 0.5,
    "closest_21": 0.05,
    "closest_22": 0.2,
    "projection_std": 0.951,
    "embedding_rank": 12.34,
}
CLOCK = {"views_per_second": 12345.6, "data_wait_share": 0.034, "train_seconds": 5.0}


@pytest.fixture
def clock(monkeypatch):
    """Time that only moves by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def show(console, clock, values=VALUES, steps=(1, 2, 3), num_steps=1003):
    """Steps of ten seconds after a first one that compiles, the last one logged."""
    with RunDisplay(num_steps, steps[0] - 1, console) as display:
        for step in steps:
            clock[0] += 10 if step > steps[0] else 600
            display.advance(step)
        display.figures(steps[-1], values, CLOCK)
        display.warn(None)
    return console.file.getvalue()


def plain(width, **options):
    return Console(file=io.StringIO(), width=width, soft_wrap=True, **options)


def terminal(width):
    return Console(force_terminal=True, file=io.StringIO(), width=width, _environ={"TERM": "xterm"})


def last_frame(text):
    """The last two lines drawn, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").split("\n")[-3:-1]


@pytest.mark.parametrize("of", [plain, terminal])
@pytest.mark.parametrize("name", ["knn_top1", "rankme"])
def test_a_score_is_shown_in_a_line_of_its_own_or_at_the_end(clock, of, name):
    shown = show(of(200), clock, VALUES | {name: 12.5})
    assert {"knn_top1": "k-NN top-1 12.5000", "rankme": "RankMe 12.5"}[name] in shown


def test_plain_lines_hold_every_figure_and_the_time_left_without_the_compiling(clock):
    line = (
        "step    3/1003  epoch   1.50  loss -0.9123  std 0.95  rank  12.3  "
        "closest 25/50/ 5/20 %  12,346 views/s  data wait  3%  2:46:40 left\n"
    )
    assert show(plain(80), clock) == line
    dumb = {"force_terminal": True, "_environ": {"TERM": "dumb"}}  # it cannot move its cursor
    assert show(plain(80, **dumb), clock) == line
    # A resumed run counts from its own steps.
    assert "0:10 left" in show(plain(80), clock, steps=(1001, 1002))
    assert "0:00 left" in show(plain(80), clock, steps=(1003,))
    console = plain(40)
    RunDisplay(10, 0, console).warn("a warning [of] " + "many words " * 20)
    (line,) = console.file.getvalue().splitlines()  # never broken
    assert line.startswith("warning: a warning [of] many")


def test_a_plain_line_shows_the_monitor_where_it_ran_and_no_figure_that_is_missing(clock):
    values = {"epoch": 2.0, "loss": 0.5, "knn_top1": 0.83}
    text = show(plain(80), clock, values)
    assert text.endswith("left  k-NN top-1 0.8300\n") and "loss  0.5000" in text
    assert not set("std rank closest".split()) & set(text.split())


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_bar_fits_the_terminal_and_shows_speed_wait_time_left_and_every_figure(clock, width):
    bar, figures = last_frame(show(terminal(width), clock))
    assert re.search(r"step +3/1003 ━+ +12,346 views/s  data wait  3% +2:46:40 left", bar)
    assert figures.split() == (
        "epoch 1.50 loss -0.9123 std 0.95 rank 12.3 closest 25/50/ 5/20 %".split()
    )
    assert len(bar) <= width and len(figures) <= width and "…" not in bar + figures
    assert bar.count("━") >= 15
    monitored = show(terminal(width), clock, VALUES | {"knn_top1": 0.8312})
    assert "step 3, epoch 1.50: k-NN top-1 0.8312" in monitored  # on a line above the bar
    narrow = last_frame(show(terminal(50), clock))
    assert all(len(line) <= 50 for line in narrow) and "epoch" in narrow[1]


def test_the_length_of_a_run_is_estimated_once_by_its_first_steps_without_the_compiling(clock):
    console = plain(200)
    with RunDisplay(64, 0, console) as display:
        for step, seconds in enumerate((600, 1, 1, 1, 1, 2, 9, 9), 1):
            clock[0] += seconds
            display.advance(step)
    assert console.file.getvalue() == "1.2 s a step: about 1:10 for the rest of the run\n"


def test_the_bar_says_that_it_compiles_and_claims_no_time_left_before_the_second_step(clock):
    console = terminal(80)
    with RunDisplay(10, 0, console) as display:
        display._bar.refresh()
        assert "compiling ... " in console.file.getvalue()
        display.advance(1)
    assert "?:?? left" in " ".join(last_frame(console.file.getvalue()))


def test_counting_says_a_line_now_and_then_and_at_the_end(clock):
    console = plain(80)
    with counting("embedding train", 5000, 1000, console) as show_count:
        for count in (2000, 3000, 4000, 5000):
            clock[0] += 20
            show_count(count)
    assert console.file.getvalue().splitlines() == [
        "embedding train: 3,000/5,000, 50/s",
        "embedding train: 5,000/5,000, 50/s",
    ]
    console = terminal(80)
    with counting("embedding train", 5000, 1000, console) as show_count:
        show_count(2000)
    assert "2000/5000" in console.file.getvalue() and "━" in console.file.getvalue()
