"""Charts of the logged figures of one run, or of several runs together."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from gsg_jax.report.charts import Chart, Line, line_chart
from gsg_jax.run.record import RunRecord


class Kind(NamedTuple):
    """How logged figures are drawn.

    Attributes:
      title: of their chart.
      unit: of the vertical axis.
      lines: (figure, name in the legend) of each line.
      note: what the chart tells.
      scale: of the logged figure to the unit.
      low: a value that the vertical axis includes, if any.
      high: another.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    note: str
    scale: float = 1.0
    low: float | None = None
    high: float | None = None


ACCURACY = Kind(
    "Accuracy",
    "% of the images",
    (
        ("knn_top1", "k-NN"),
        ("online_linear_test_top1", "linear probe, test images"),
        ("online_linear_top1", "linear probe, batch"),
    ),
    "How well the embeddings can be classified; epoch 0 is the untrained encoder. A run that has "
    "learned something is above raw pixels and the untrained encoder.",
    scale=100,
)
SPREAD = Kind(
    "Spread of a batch's projections",
    "std x sqrt(D), no unit",
    (("projection_std", "spread"),),
    "1 if the projections fill the sphere, 0 if all are the same (a collapse).",
    low=0,
    high=1,
)
PAIRS = Kind(
    "Closest of the four view pairs",
    "% of the image pairs of a batch",
    (
        ("closest_11", "views 1 and 1"),
        ("closest_12", "views 1 and 2"),
        ("closest_21", "views 2 and 1"),
        ("closest_22", "views 2 and 2"),
    ),
    "How often guided stop-gradient chose these two views, one of the image and one of its "
    "reference, as sources; near 25 % each if all views are alike.",
    scale=100,
    low=0,
    high=50,
)
KINDS = (
    ACCURACY,
    Kind(
        "Loss",
        "the method's own scale",
        (("loss", "loss"),),
        "What training minimises. Losses of different methods cannot be compared.",
    ),
    SPREAD,
    Kind(
        "Effective rank of a batch's embeddings",
        "directions",
        (("embedding_rank", "rank"),),
        "The number of directions in which the embeddings of a batch differ. It falls in a "
        "dimensional collapse, which the spread does not show.",
        low=0,
    ),
    Kind(
        "Ranks of all embeddings",
        "directions",
        (("rankme", "RankMe"), ("lidar", "LiDAR")),
        "The number of directions that the embeddings of the training images use (RankMe), and of "
        "those in which images differ more than the views of one image do (LiDAR).",
        low=0,
    ),
    PAIRS,
    Kind("Learning rate", "per step", (("learning_rate", "rate"),), "Of the optimizer.", low=0),
    Kind("Norm of the gradient", "no unit", (("grad_norm", "norm"),), "Of all weights.", low=0),
    Kind(
        "Throughput",
        "views a second",
        (("views_per_second", "speed"),),
        "Depends on the machine and on what else it does.",
        low=0,
    ),
    Kind(
        "Waiting for data",
        "% of the time",
        (("data_wait_share", "waiting"),),
        "0 if the input keeps up with the device.",
        scale=100,
        low=0,
        high=100,
    ),
)
KNOWN = {name for kind in KINDS for name, _ in kind.lines} | {"step", "epoch"}
LEVELS = (("knn_top1_untrained", "untrained encoder"), ("knn_top1_pixels", "raw pixels"))
# Figures of the whole set, and computed ones, are not smoothed.
EXACT = ("knn_top1", "online_linear_test_top1", "rankme", "lidar", "learning_rate")


def curves(record: RunRecord) -> list[Chart]:
    """Draws a chart for each logged figure of a run; those in KINDS come first."""
    axis = _Axis([record])
    charts = []
    for kind in (*KINDS, *_other_kinds([record])):
        lines = [axis.line(record, kind, name, text) for name, text in kind.lines]
        charts.append(axis.chart(kind, [line for line in lines if line.points]))
    return [chart for chart in charts if chart]


def curves_of_several(records: Sequence[RunRecord], names: Sequence[str]) -> list[Chart]:
    """Draws a chart for each figure that at least one of several runs has logged.

    The four view pairs of guided methods share a chart: colours for pairs, dashes for runs.

    Args:
      records: of the runs.
      names: of the runs, for the legend.
    """
    axis = _Axis(records)
    runs = list(zip(names, records, strict=True))
    charts = []
    for kind in (*KINDS, *_other_kinds(records)):
        if kind is PAIRS:
            lines = [
                axis.line(record, kind, figure, f"{name}: {text}")._replace(look=(pair, run))
                for run, (name, record) in enumerate(runs)
                for pair, (figure, text) in enumerate(kind.lines)
            ]
            charts.append(axis.chart(kind, [line for line in lines if line.points]))
            continue
        for figure, text in kind.lines:
            title = kind.title if len(kind.lines) == 1 else f"{kind.title}: {text}"
            lines = [axis.line(record, kind, figure, name) for name, record in runs]
            charts.append(axis.chart(kind._replace(title=title), lines, figure))
    return [chart for chart in charts if chart]


class _Axis:
    """The horizontal axis: epochs, or steps if a run has not logged its epochs."""

    def __init__(self, records: Sequence[RunRecord]):
        self._records = records
        self._has_epochs = all(map(_epochs_a_step, records))
        logged = (line["step"] * self._ratio(record) for record in records for line in record.lines)
        self._last = max(logged, default=0.0)

    def _ratio(self, record: RunRecord) -> float:
        return _epochs_a_step(record) if self._has_epochs else 1.0

    def line(self, record: RunRecord, kind: Kind, figure: str, name: str) -> Line:
        """The line of a logged figure; k-NN begins with the untrained encoder."""
        ratio = self._ratio(record)
        logged = record.clock if any(figure in line for line in record.clock) else record.lines
        points = [
            (line["step"] * ratio, kind.scale * line[figure]) for line in logged if figure in line
        ]
        untrained = record.baselines.get("knn_top1_untrained")
        if figure == "knn_top1" and points and untrained is not None:
            points.insert(0, (0.0, kind.scale * untrained))
        return Line(name, points, is_noisy=figure not in EXACT)

    def chart(self, kind: Kind, lines: Sequence[Line], figure: str = "knn_top1") -> Chart | None:
        """A chart of the lines and of the levels to compare them with; None without points."""
        if not any(line.points for line in lines):
            return None
        return line_chart(
            kind.title,
            [*lines, *self._levels(kind, figure)],
            unit=kind.unit,
            note=kind.note,
            x_name="epoch" if self._has_epochs else "step",
            xs=(0.0, self._last),
            low=kind.low,
            high=kind.high,
        )

    def _levels(self, kind: Kind, figure: str) -> list[Line]:
        """Figures to beat and the collapse line, if they are the same for all runs."""
        if kind.lines == SPREAD.lines:
            levels = [("collapse below", "min_projection_std")]
            sources = [record.config.get("eval", {}) for record in self._records]
        elif kind.lines == ACCURACY.lines and figure == "knn_top1":
            levels = [(text, name) for name, text in LEVELS]
            sources = [record.baselines for record in self._records]
        else:
            return []
        values = {text: {source.get(name) for source in sources} for text, name in levels}
        return [
            Line(text, [(0.0, kind.scale * value)], is_level=True)
            for text, (value, *others) in values.items()
            if not others and value is not None
        ]


def _other_kinds(records: Sequence[RunRecord]) -> list[Kind]:
    """Other logged figures: the method's, or the gradient inspector's."""
    logged = itertools.chain.from_iterable(line for record in records for line in record.lines)
    return [
        Kind(name, "as the method logs it", ((name, name),), "")
        for name in dict.fromkeys(logged)
        if name not in KNOWN and not name.startswith("few_label_")  # those have a table
    ]


def _epochs_a_step(record: RunRecord) -> float:
    """Epochs per step; 0 if no line has logged any."""
    ratios = (line["epoch"] / line["step"] for line in record.lines if line.get("epoch"))
    return next(filter(math.isfinite, ratios), 0.0)
