"""The curves of one run, or of several beside one another, from what they have logged."""

from collections.abc import Sequence

from gsg_jax.report.charts import Chart, Line, line_chart
from gsg_jax.run.record import RunRecord

KNN = "k-NN accuracy"
# The figures of a chart of one run: title, (figure, what the legend calls it) each, note.
CHARTS = (
    ("Loss", (("loss", "loss"),), "What the steps minimise; a method's own scale."),
    (
        KNN,
        (
            ("knn_top1", "pretrained"),
            ("online_linear_test_top1", "linear probe, test images"),
            ("online_linear_top1", "linear probe, batch"),
        ),
        "The representation judged without training: above raw pixels and the untrained encoder "
        "it has learned something.",
    ),
    (
        "Spread of the projections",
        (("projection_std", "std x sqrt(D)"),),
        "1 where projections fill the sphere, 0 where all are one: a collapse.",
    ),
    (
        "Effective rank of the embeddings",
        (("embedding_rank", "rank"),),
        "In how many directions the embeddings of a batch differ; it falls in a collapse of "
        "dimensions, which the spread does not show.",
    ),
    (
        "Closest of the four view pairs",
        (
            ("closest_11", "views 1 and 1"),
            ("closest_12", "views 1 and 2"),
            ("closest_21", "views 2 and 1"),
            ("closest_22", "views 2 and 2"),
        ),
        "Share of the image pairs of which guided stop-gradient took these two views, an image's "
        "and its reference's, as sources; near 0.25 each where the views are alike.",
    ),
    ("Learning rate", (("learning_rate", "learning rate"),), "Of the optimizer, at each step."),
    ("Norm of the gradient", (("grad_norm", "norm"),), ""),
)
LEVELS = (("knn_top1_untrained", "untrained encoder"), ("knn_top1_pixels", "raw pixels"))
SPEED = (
    ("Throughput", (("views_per_second", "views a second"),), "What the clock decided."),
    (
        "Waiting for data",
        (("data_wait_share", "share of the time"),),
        "0 where the input keeps up.",
    ),
)
NO_CURVES = {"step", "epoch"}
SHARES = ("Closest of the four view pairs", "Waiting for data")  # drawn from 0 to 1


def curves(record: RunRecord) -> list[Chart]:
    """The charts of one run.

    Args:
      record: of the run.

    Returns:
      A chart for each figure that was logged; those that are known first.
    """
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
    """The same figures of several runs in one chart each.

    Args:
      records: of the runs.
      names: what the legend calls them.

    Returns:
      A chart for each figure that at least one of them has logged.
    """
    axis = _Axis(records)
    known = {name: (title, note) for title, of, note in (*CHARTS, *SPEED) for name, _ in of}
    alone = {name for _, of, _ in (*CHARTS, *SPEED) if len(of) == 1 for name, _ in of}
    others = dict.fromkeys(name for record in records for name in _other_figures(record))
    charts = []
    for figure in (*known, *others):
        title, note = known.get(figure, (figure, ""))
        title = title if figure in alone or figure in others else f"{title}: {figure}"
        lines = [
            Line(name, axis.points(record, figure))
            for record, name in zip(records, names, strict=True)
        ]
        charts.append(axis.chart(title, lines, note))
    return [chart for chart in charts if chart]


class _Axis:
    """The horizontal axis: epochs, or steps where a run does not tell its epochs."""

    def __init__(self, records: Sequence[RunRecord]):
        ratios = [_epochs_a_step(record) for record in records]
        self._has_epochs = all(ratios)

    def points(self, record: RunRecord, name: str) -> list[tuple[float, float]]:
        """Where the figure was logged."""
        ratio = _epochs_a_step(record) if self._has_epochs else 1.0
        lines = record.clock if any(name in line for line in record.clock) else record.lines
        return [(line["step"] * ratio, float(line[name])) for line in lines if name in line]

    def chart(self, title: str, lines: Sequence[Line], note: str) -> Chart | None:
        """A chart of the lines that have points; None where none has."""
        if not any(line.points for line in lines):
            return None
        low, high = (0.0, 1.0) if title.startswith(SHARES) else (None, None)
        x_name = "epoch" if self._has_epochs else "step"
        return line_chart(title, lines, note=note, x_name=x_name, low=low, high=high)


def _other_figures(record: RunRecord) -> list[str]:
    """What a run has logged besides: of its method, or of the gradient inspector."""
    drawn = {name for _, of, _ in (*CHARTS, *SPEED) for name, _ in of} | NO_CURVES
    logged = dict.fromkeys(name for line in record.lines for name in line)
    return [name for name in logged if name not in drawn]


def _epochs_a_step(record: RunRecord) -> float:
    """How many epochs a step is; 0 where no line tells."""
    told = (line["epoch"] / line["step"] for line in record.lines if line.get("epoch"))
    return next(told, 0.0)
