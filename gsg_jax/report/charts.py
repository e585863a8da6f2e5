"""Line charts as SVG, each with its figures as a table: for the eye, keyboard and screen reader.

No plotting library offers all that a page needs: colours that follow light and dark, lines that fit
a phone, figures that a screen reader finds, and 10 KB a chart.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34  # margins
MAX_POINTS = 400  # of a line
NUM_COLOURS = 8  # that the page defines, as --c0 to --c7
DASHES = ("", "6 3", "2 3")  # tell lines of one colour apart
LEVEL_DASHES = "4 4"
FEWEST_SMOOTHED = 20  # points of a noisy line
MOST_FAINT = 4  # noisy lines of a chart that are also drawn as logged


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
      name: for the legend and the table.
      points: (x, y) with x not falling; a y that is NaN or infinite leaves a gap.
      is_level: whether it is a figure to compare with, drawn across the chart at the first y.
      is_noisy: whether its moving mean is drawn, and the points themselves only faintly.
      look: numbers of its colour and of its dashes; by default each line has its own.
    """

    name: str
    points: Sequence[tuple[float, float]]
    is_level: bool = False
    is_noisy: bool = False
    look: tuple[int, int] | None = None


class Chart(NamedTuple):
    """A chart for a page.

    Attributes:
      title: what it shows.
      unit: of the vertical axis.
      note: a sentence about it, or "".
      svg: the picture.
      legend: (name, number of its colour, dashes) of each line; empty if there is only one.
      head: the heads of the table's columns.
      rows: of the table, a text for each column.
    """

    title: str
    unit: str
    note: str
    svg: Markup
    legend: tuple[tuple[str, int, str], ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    x_name: str = "epoch",
    xs: Sequence[float] = (),
    note: str = "",
    log_y: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> Chart | None:
    """Draws lines over one axis.

    Args:
      title: of the chart.
      lines: at least one; a line without points keeps its colour and its name. If there are
        too many x, each stretch keeps those at which a line is lowest or highest, and the note says
        so.
      unit: of the vertical axis.
      x_name: name of the horizontal axis.
      xs: values that it includes.
      note: a sentence about the chart.
      log_y: whether the vertical axis is logarithmic; values that are not above 0 are left out.
      low: a value that the vertical axis includes, if any.
      high: another.

    Returns:
      The chart, or None if no line has a finite point.
    """
    lines = [
        line if line.look else line._replace(look=(n % NUM_COLOURS, n // NUM_COLOURS))
        for n, line in enumerate(lines)
    ]
    thinned = _thinned(lines)
    if any(len(old.points) > len(new.points) for old, new in zip(lines, thinned, strict=True)):
        note += " Only the lowest and highest of each stretch are drawn."
    drawn = [_finite(line, log_y) for line in thinned]
    drawn = [line for line in drawn if _num_finite(line)]
    if not drawn:
        return None
    means = {line.name: _moving_mean(_finite(line, log_y)) for line in lines if _is_smoothed(line)}
    faint = [line for line in drawn if line.name in means and len(means) <= MOST_FAINT]
    if means:
        note += f" The line is a moving mean{'; the faint one is as logged' if faint else ''}."
    clear = [means.get(line.name, line) for line in drawn]
    xs = [*xs, *(x for line in drawn if not line.is_level for x, _ in line.points)] or [0.0, 1.0]
    ys = [y for line in (*faint, *clear) for _, y in line.points if not math.isnan(y)]
    ys += [limit for limit in (low, high) if limit is not None and not log_y]
    place = _Place(min(xs), max(xs), min(ys), max(ys), log_y)
    parts = [_axes(place, x_name)]
    parts += [_line(place, line, "faint") for line in faint]
    parts += [_line(place, line, "line") for line in clear]
    svg = _svg(f"{title}, {unit}. {_in_words(drawn, x_name)}", place, parts)
    legend = tuple((line.name, line.look[0], _dashes(line)) for line in lines)
    head, rows = _table(thinned, x_name)
    return Chart(title, unit, note.strip(), svg, legend if len(lines) > 1 else (), head, rows)


def _num_finite(line: Line) -> int:
    return sum(math.isfinite(y) for _, y in line.points)


def _is_smoothed(line: Line) -> bool:
    return line.is_noisy and _num_finite(line) >= FEWEST_SMOOTHED


def _moving_mean(line: Line) -> Line:
    """The mean of a twentieth of the points on each side, with the gaps of the line."""
    xs, ys = np.array(line.points).T
    half, is_there = max(2, len(xs) // 20), np.isfinite(ys)
    sums, counts = (
        np.concatenate([[0], np.cumsum(values)]) for values in (np.where(is_there, ys, 0), is_there)
    )
    last = np.minimum(np.arange(len(xs)) + half + 1, len(xs))
    first = np.maximum(np.arange(len(xs)) - half, 0)
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    means = np.where(is_there, means, math.nan)
    every = -(-len(xs) // MAX_POINTS)
    kept = sorted({*range(0, len(xs), every), len(xs) - 1})
    return line._replace(points=[(float(xs[n]), float(means[n])) for n in kept])


def _dashes(line: Line) -> str:
    """The dashes of a line: levels are dashed, and so are lines once the colours repeat."""
    return LEVEL_DASHES if line.is_level else DASHES[line.look[1] % len(DASHES)]


def figure(value: float) -> str:
    """Formats a number for a table: four digits, or words for NaN and infinity."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.3g}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"


class _Place:
    """Maps values to places in the picture."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float, log_y: bool):
        self.x0, self.x1 = (x0, x1) if x1 > x0 else (x0 - 1, x0 + 1)
        self.ticks_y, self.log_y = (_log_ticks if log_y else ticks)(y0, y1), log_y
        self.y0, self.y1 = min(y0, self.ticks_y[0]), max(y1, self.ticks_y[-1])
        if not self.y1 > self.y0:
            self.y0, self.y1 = self.y0 / 2, self.y0 * 2

    def x(self, value: float) -> float:
        share = (value - self.x0) / (self.x1 - self.x0)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        if self.log_y:
            share = math.log(value / self.y0) / math.log(self.y1 / self.y0)
        else:
            share = (value - self.y0) / (self.y1 - self.y0)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _svg(label: str, place: _Place, parts: list[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" tabindex="0" '
        'data-x="{} {} {} {}">{}</svg>'
    ).format(
        *(WIDTH, HEIGHT, label, place.x0, place.x1, LEFT, WIDTH - RIGHT), Markup("").join(parts)
    )


def ticks(low: float, high: float, num: int = 4) -> list[float]:
    """Chooses round numbers that cover a range.

    Args:
      low: of the range.
      high: of the range, at least low.
      num: approximate number of steps.

    Returns:
      Two or more numbers, the first at most low, the last at least high.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):  # one value: room around it
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    raw = (high - low) / num
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * n for n in (1, 2, 2.5, 5, 10) if unit * n >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 5)
    return [10.0**n for n in range(first, max(last, first + 1) + every, every)]


def _thinned(lines: Sequence[Line]) -> list[Line]:
    """Thins lines to the same few x: at most MAX_POINTS unless there are many lines.

    Each stretch keeps the x at which a line is lowest, is highest, or first has no number.
    """
    curves = [dict(line.points) for line in lines if not line.is_level]
    xs = sorted({x for points in curves for x in points})
    if len(xs) <= MAX_POINTS:
        return list(lines)
    num_stretches = max(4, MAX_POINTS // (3 * len(curves)))
    ends = [round(n * len(xs) / num_stretches) for n in range(num_stretches + 1)]
    kept = {xs[0], xs[-1]}
    for start, end in zip(ends, ends[1:], strict=False):
        for points in curves:
            there = [x for x in xs[start:end] if x in points]
            finite = [x for x in there if math.isfinite(points[x])]
            kept.update([x for x in there if not math.isfinite(points[x])][:1])
            if finite:
                kept |= {min(finite, key=points.get), max(finite, key=points.get)}
    return [
        line if line.is_level else line._replace(points=[p for p in line.points if p[0] in kept])
        for line in lines
    ]


def _finite(line: Line, log_y: bool) -> Line:
    """Replaces by NaN whatever cannot be drawn."""
    points = [
        (x, y if math.isfinite(y) and (y > 0 or not log_y) else math.nan) for x, y in line.points
    ]
    return line._replace(points=points)


def _axes(place: _Place, x_name: str) -> Markup:
    parts, bottom = [], HEIGHT - BOTTOM
    grid = Markup('<path class="grid" d="M{} {}H{}"/><text class="y" x="{}" y="{}">{}</text>')
    text = Markup('<text class="x" x="{}" y="{}">{}</text>')
    for value in place.ticks_y:
        y = place.y(value)
        parts.append(grid.format(LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 4, _tick(value)))
    for value in ticks(place.x0, place.x1, 5):
        if place.x0 <= value <= place.x1:
            parts.append(text.format(place.x(value), bottom + 15, _tick(value)))
    parts.append(text.format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_name))
    return Markup('<g aria-hidden="true">{}</g>').format(Markup("").join(parts))


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 and abs(value) < 1e7 else f"{value:.4g}"


def _line(place: _Place, line: Line, kind: str) -> Markup:
    colour = line.look[0]
    style = Markup('class="{}" style="stroke:var(--c{})" stroke-dasharray="{}"').format(
        kind, colour, _dashes(line)
    )
    if line.is_level:
        level = line.points[0][1]
        return Markup('<path {} d="M{} {}H{}"/>').format(style, LEFT, place.y(level), WIDTH - RIGHT)
    path, dots = "", Markup("")
    dot = Markup('<circle cx="{}" cy="{}" r="2.5" style="fill:var(--c{})"/>')
    for is_gap, stretch in itertools.groupby(line.points, lambda point: math.isnan(point[1])):
        if is_gap:
            continue
        places = [(place.x(x), place.y(y)) for x, y in stretch]
        path += "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
        if len(places) == 1:  # a point alone
            dots += dot.format(*places[0], colour)
    return Markup('<path {} d="{}"/>').format(style, path) + dots


def _in_words(lines: Sequence[Line], x_name: str) -> str:
    """The text that a screen reader says for the picture."""
    said = []
    for line in lines:
        points = [(x, y) for x, y in line.points if not math.isnan(y)]
        if line.is_level:
            said.append(f"{line.name}: {figure(points[0][1])}")
            continue
        ys = [y for _, y in points]
        said.append(
            f"{line.name}: from {figure(ys[0])} at {x_name} {figure(points[0][0])} to "
            f"{figure(ys[-1])} at {x_name} {figure(points[-1][0])}, lowest {figure(min(ys))}, "
            f"highest {figure(max(ys))}"
        )
    return ". ".join(said) + ". The table below has the figures."


def _table(lines: Sequence[Line], x_name: str) -> tuple[tuple[str, ...], tuple]:
    """Makes a row for each x and a column for each line; levels come last."""
    curves = [line for line in lines if not line.is_level]
    levels = [line for line in lines if line.is_level]
    head = (x_name, *(line.name for line in curves))
    head = (*head, *(f"{line.name} (throughout)" for line in levels))
    by_x = [dict(line.points) for line in curves]
    xs = sorted({x for points in by_x for x in points}) or [0.0]
    constant = tuple(figure(line.points[0][1]) for line in levels)
    return head, tuple(
        (figure(x), *(figure(points[x]) if x in points else "" for points in by_x), *constant)
        for x in xs
    )


def bar(share: float) -> Markup:
    """Draws a share in [0, 1] as a bar beside a figure of a table; screen readers skip it."""
    return Markup('<span class="bar" aria-hidden="true" style="width:{}%"></span>').format(
        escape(f"{100 * share:.1f}")
    )
