"""Charts of the logged figures of one run, or of several runs together."""

from collections.abc import Sequence

from gsg_jax.report.charts import Chart, Line, line_chart
from gsg_jax.run.record import RunRecord

KNN = "k-NN accuracy"
# The charts of one run: title, (figure, name in the legend) of each line, note.
CHARTS = (
    ("Loss", (("loss", "loss"),), "The objective; its scale depends on the method."),
    (
        KNN,
        (
            ("knn_top1", "pretrained"),
            ("online_linear_test_top1", "linear probe, test images"),
            ("online_linear_top1", "linear probe, batch"),
        ),
        "How well k-NN classifies the embeddings. A run that has learned something is above raw "
        "pixels and the untrained encoder.",
    ),
    (
        "Spread of the projections",
        (("projection_std", "std x sqrt(D)"),),
        "1 if the projections fill the sphere, 0 if all are the same (a collapse).",
    ),
    (
        "Effective rank of the embeddings",
        (("embedding_rank", "rank"),),
        "The number of directions in which the embeddings of a batch differ. It falls in a "
        "dimensional collapse, which the spread does not show.",
    ),
    (
        "Closest of the four view pairs",
        (
            ("closest_11", "views 1 and 1"),
            ("closest_12", "views 1 and 2"),
            ("closest_21", "views 2 and 1"),
            ("closest_22", "views 2 and 2"),
        ),
        "Share of the image pairs for which guided stop-gradient chose these two views, one of "
        "the image and one of its reference, as sources; near 0.25 each if all views are alike.",
    ),
    ("Learning rate", (("learning_rate", "learning rate"),), "Of the optimizer, at each step."),
    ("Norm of the gradient", (("grad_norm", "norm"),), ""),
)
LEVELS = (("knn_top1_untrained", "untrained encoder"), ("knn_top1_pixels", "raw pixels"))
SPEED = (
    ("Throughput", (("views_per_second", "views a second"),), "Depends on the machine."),
    (
        "Waiting for data",
        (("data_wait_share", "share of the time"),),
        "0 if the input keeps up with the device.",
    ),
)
NO_CURVES = {"step", "epoch"}
SHARES = ("Closest of the four view pairs", "Waiting for data")  # drawn from 0 to 1


def curves(record: RunRecord) -> list[Chart]:
    """Draws a chart for each logged figure of a run; those in CHARTS come first."""
    axis = _Axis([record])
    charts = []
    for title, names, note in (*CHARTS, *SPEED):
        lines = [Line(text, axis.points(record, name)) for name, text in names]
        lines = [line for line in lines if line.points]
        if title == KNN and lines:
            lines += [
                Line(text, [(0.0, float(record.baselines[name]))], is_level=True)
                for name, text in LEVELS
                if name in record.baselines
            ]
        charts.append(axis.chart(title, lines, note))
    for name in _other_figures(record):
        charts.append(axis.chart(name, [Line(name, axis.points(record, name))], ""))
    return [chart for chart in charts if chart]


def curves_of_several(records: Sequence[RunRecord], names: Sequence[str]) -> list[Chart]:
    """Draws a chart for each figure that at least one of several runs has logged.

    Args:
      records: of the runs.
      names: of the runs, for the legend.
    """
    axis = _Axis(records)
    known = {name: (title, note) for title, of, note in (*CHARTS, *SPEED) for name, _ in of}
    alone = {name for _, of, _ in (*CHARTS, *SPEED) if len(of) == 1 for name, _ in of}
    others = dict.fromkeys(name for record in records for name in _other_figures(record))
    charts = []
    for figure in (*known, *others):
        title, note = known.get(figure, (figure, ""))
        title = title if figure in alone or figure in others else f"{title}: {figure}"
        runs = zip(names, records, strict=True)
        lines = [Line(name, axis.points(record, figure)) for name, record in runs]
        charts.append(axis.chart(title, lines, note))
    return [chart for chart in charts if chart]


class _Axis:
    """The horizontal axis: epochs, or steps if a run has not logged its epochs."""

    def __init__(self, records: Sequence[RunRecord]):
        ratios = [_epochs_a_step(record) for record in records]
        self._has_epochs = all(ratios)

    def points(self, record: RunRecord, name: str) -> list[tuple[float, float]]:
        """The points (x, value) of a logged figure."""
        ratio = _epochs_a_step(record) if self._has_epochs else 1.0
        lines = record.clock if any(name in line for line in record.clock) else record.lines
        return [(line["step"] * ratio, float(line[name])) for line in lines if name in line]

    def chart(self, title: str, lines: Sequence[Line], note: str) -> Chart | None:
        """A chart of the lines; None if none has points."""
        if not any(line.points for line in lines):
            return None
        low, high = (0.0, 1.0) if title.startswith(SHARES) else (None, None)
        x_name = "epoch" if self._has_epochs else "step"
        return line_chart(title, lines, note=note, x_name=x_name, low=low, high=high)


def _other_figures(record: RunRecord) -> list[str]:
    """Other logged figures: of the method, or of the gradient inspector."""
    drawn = {name for _, of, _ in (*CHARTS, *SPEED) for name, _ in of} | NO_CURVES
    logged = dict.fromkeys(name for line in record.lines for name in line)
    return [name for name in logged if name not in drawn]


def _epochs_a_step(record: RunRecord) -> float:
    """Epochs a step; 0 if no line has logged it."""
    ratios = (line["epoch"] / line["step"] for line in record.lines if line.get("epoch"))
    return next(ratios, 0.0)
