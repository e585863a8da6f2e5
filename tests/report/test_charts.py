"""A chart's picture and its table show the given figures."""

import math
import re

import numpy as np
import pytest

from gsg_jax.report import charts
from gsg_jax.report.charts import Line, line_chart, ticks


def drawn_points(svg: str, number: int = 0) -> list[list[tuple[float, float]]]:
    """The stretches of a line in units of the axes, read back by the axes' labels."""

    def scale(kind, axis):
        found = re.findall(
            rf'<text class="{kind}" x="([\d.]+)" y="([\d.]+)">([-\d.e+,]+)</text>', svg
        )
        pixel = [float(place[axis]) - 4 * axis for place in found]
        value = [float(place[2].replace(",", "")) for place in found]
        return np.polyfit(pixel, value, 1)

    of_x, of_y = scale("x", 0), scale("y", 1)
    paths = re.findall(r'class="line"[^>]* d="([^"]+)"', svg)
    stretches = []
    for stretch in paths[number].split("M")[1:]:
        pairs = [tuple(map(float, pair.split())) for pair in stretch.split("L")]
        stretches.append([(np.polyval(of_x, x), np.polyval(of_y, y)) for x, y in pairs])
    return stretches


def test_a_line_lies_where_the_labels_of_the_axes_say():
    rng = np.random.default_rng(0)
    points = [
        (float(x), float(y)) for x, y in zip(range(3, 40), rng.normal(7, 30, 37), strict=True)
    ]
    chart = line_chart("title", [Line("a", points)])
    (stretch,) = drawn_points(chart.svg)
    np.testing.assert_allclose(stretch, points, atol=1.0)  # a pixel is about 0.5
    assert [row[0] for row in chart.rows] == [charts.figure(x) for x, _ in points]
    assert [row[1] for row in chart.rows] == [charts.figure(y) for _, y in points]


def test_what_is_no_number_leaves_a_gap_and_the_table_says_so():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 4.0), (4, math.inf), (5, 6.0), (6, 7.0)]
    chart = line_chart("title", [Line("a", points)])
    stretches = drawn_points(chart.svg)
    assert [len(stretch) for stretch in stretches] == [2, 1, 2]
    assert chart.svg.count("<circle") == 1  # the point between two gaps
    assert chart.rows[2] == ("2", "not a number")
    assert chart.rows[4] == ("4", "infinite")
    assert "nan" not in chart.svg and "inf " not in chart.svg
    assert line_chart("title", [Line("a", points[2:3])]) is None


def test_of_many_points_the_lowest_and_the_highest_of_each_line_are_kept():
    values = np.random.default_rng(0).normal(size=(4, 30_000))
    values[0, 777] = math.nan
    lines = [Line(str(n), list(enumerate(row))) for n, row in enumerate(values)]
    chart = line_chart("title", lines, note="Note.")
    # Thinned together, so that the table is full.
    assert 200 < len(chart.rows) <= charts.MAX_POINTS and all(map(all, chart.rows))
    for n, row in enumerate(values, 1):
        shown = {cells[n] for cells in chart.rows}
        assert {charts.figure(np.nanmin(row)), charts.figure(np.nanmax(row))} <= shown
    assert "not a number" in {cells[1] for cells in chart.rows}
    assert {"0", "29,999"} <= {cells[0] for cells in chart.rows}
    assert chart.note.startswith("Note. Only the lowest and highest of each stretch")
    few = line_chart("title", [Line("a", list(enumerate(values[1, :400])))], note="Note.")
    assert few.note == "Note." and len(few.rows) == 400


def test_lines_share_a_table_a_level_is_across_and_one_without_points_keeps_its_colour():
    lines = [
        Line("none", []),
        *(Line("a", [(1, 1.0), (3, 3.0)]), Line("b", [(2, 5.0), (3, 6.0)])),
        Line("to beat", [(0, 0.25)], is_level=True),
    ]
    chart = line_chart("Loss", lines)
    assert chart.head == ("epoch", "none", "a", "b", "to beat (throughout)")
    assert [row[1:] for row in chart.rows[-3:]] == [
        ("", "1", "", "0.25"),
        ("", "", "5", "0.25"),
        ("", "3", "6", "0.25"),
    ]
    told = [(name, colour, dashes) for name, colour, dashes in chart.legend]
    assert told == [("none", 0, ""), ("a", 1, ""), ("b", 2, ""), ("to beat", 3, "4 4")]
    assert "var(--c1)" in chart.svg and "var(--c0)" not in chart.svg
    assert "a: from 1 at epoch 1 to 3 at epoch 3, lowest 1, highest 3." in chart.svg


@pytest.mark.parametrize(
    ("value", "text"),
    [(500_450, "500,450"), (500_450.5, "500,450.5"), (0.1234567, "0.1235"), (1e-5, "1e-05")],
)
def test_steps_keep_their_digits(value, text):
    assert charts.figure(value) == text


@pytest.mark.parametrize(("num", "half"), [(31, 2), (200, 10)])
def test_a_noisy_line_is_its_moving_mean_and_the_points_are_faint(num, half):
    ys = np.random.default_rng(0).normal(size=num).tolist()
    ys[5] = math.nan
    line = Line("a", list(enumerate(ys)), is_noisy=True)
    chart = line_chart("title", [line], note="Note.")
    assert chart.note == "Note. The line is a moving mean; the faint one is as logged."
    assert chart.svg.count('class="faint"') == 1
    means = [np.nanmean(ys[max(0, n - half) : n + half + 1]) for n in range(num)]
    first, second = drawn_points(chart.svg)
    expected = [(n, mean) for n, mean in enumerate(means) if n != 5]
    np.testing.assert_allclose(first + second, expected, atol=max(0.05, num / 400))
    assert [row[1] for row in chart.rows] == [charts.figure(y) for y in ys]
    few = line_chart("title", [line._replace(points=line.points[-19:])])
    assert few.note == "" and "faint" not in few.svg
    five = [line._replace(name=str(n)) for n in range(5)]
    assert "faint" not in line_chart("title", five).svg


def test_the_axes_include_what_they_are_told_to():
    chart = line_chart("title", [Line("a", [(3, 7.0), (4, 8.0)])], low=0, high=20, xs=(0, 10))
    ((at_3, at_4),) = drawn_points(chart.svg)
    np.testing.assert_allclose((*at_3, *at_4), (3, 7, 4, 8), atol=0.1)
    for kind, value in (("y", "0"), ("y", "20"), ("x", "0"), ("x", "10")):
        assert re.search(rf'class="{kind}"[^>]*>{value}<', chart.svg)


def test_a_look_sets_the_colour_and_the_dashes():
    lines = [Line("a", [(0, 1.0), (1, 2.0)], look=(2, 1)), Line("b", [(0, 1.0)])]
    chart = line_chart("title", lines)
    assert chart.legend == (("a", 2, charts.DASHES[1]), ("b", 1, ""))
    assert 'style="stroke:var(--c2)" stroke-dasharray="6 3"' in chart.svg


def test_a_logarithmic_axis_leaves_out_what_has_no_logarithm():
    points = [(1, 0.1), (2, 0.01), (3, 0.0), (4, 1e-4)]
    chart = line_chart("title", [Line("a", points)], log_y=True)
    path = re.findall(r'class="line"[^>]* d="([^"]+)"', chart.svg)[0]
    ys = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    assert len(ys) == 3
    assert ys[2] - ys[1] == pytest.approx(2 * (ys[1] - ys[0]), abs=0.3)  # two decades, one decade


def test_ticks_are_few_round_numbers_that_cover_the_range():
    rng = np.random.default_rng(0)
    for _ in range(500):
        low, extent = rng.normal() * 10 ** rng.uniform(-8, 8), 10 ** rng.uniform(-8, 8)
        found = ticks(low, low + extent)
        assert found[0] <= low + 1e-6 * extent and found[-1] >= low + extent - 1e-6 * extent
        assert 2 <= len(found) <= 12
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(3, 3)[0] < 3 < ticks(3, 3)[-1]
    assert ticks(0, 0)[0] < 0 < ticks(0, 0)[-1]
