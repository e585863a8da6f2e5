"""Shows the progress of a training run: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from gsg_jax.console import shown, standard_error
from gsg_jax.run.record import SCORES, baseline_name

# Figures of a logged step: name, label, format.
FIGURES = (
    ("epoch", "epoch", "6.2f"),
    ("loss", "loss", " .4f"),
    ("projection_std", "std", ".2f"),
    ("embedding_rank", "rank", "5.1f"),
    ("online_linear_top1", "probe", ".3f"),
)
# The monitor's figures.
MONITORED = (
    ("knn_top1", "k-NN top-1", ".4f"),
    ("online_linear_test_top1", "probe on test", ".4f"),
    ("rankme", "RankMe", ".1f"),
    ("lidar", "LiDAR", ".1f"),
)
# A run's length is estimated after this many steps and seconds, not counting the compilation.
ESTIMATED_STEPS, ESTIMATED_SECONDS = 3, 5.0


class RunDisplay:
    """Shows the progress of a run; a context manager."""

    def __init__(self, num_steps: int, first_step: int, console: Console | None = None):
        """Prepares a display of the steps after first_step, up to num_steps."""
        self._console = console or standard_error()
        self._num_steps = num_steps
        self._compiled_step, self._compiled_time = None, 0.0
        self._has_estimated = False
        self._bar = _Bar(self._console) if self._console.is_interactive else None
        if self._bar:
            self._bar.start_at(first_step, num_steps)

    def __enter__(self) -> "RunDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_exc_info) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._compiled_step is None:  # the first step compiles, so it is not timed
            self._compiled_step, self._compiled_time = step, time.monotonic()
        if self._bar:
            self._bar.move(step, self._time_left(step))
        elif not self._has_estimated and step >= self._compiled_step + ESTIMATED_STEPS:
            self._estimate(step)

    def _estimate(self, step: int) -> None:
        """Prints once how long the run will take, by its first steps; a bar always shows it."""
        seconds = time.monotonic() - self._compiled_time
        if seconds < ESTIMATED_SECONDS:
            return
        self._has_estimated = True
        rate = seconds / (step - self._compiled_step)
        self.note(f"{rate:.2g} s a step: about {self._time_left(step)} for the rest of the run")

    def figures(self, step: int, values: dict[str, float], timing: dict[str, float]) -> None:
        """Shows the figures of a logged step."""
        speed = f"{timing['views_per_second']:,.0f} views/s"
        wait = f"data wait {timing['data_wait_share']:3.0%}"
        if self._bar:
            self._bar.show(f"{speed:>14}  {wait}", "  ".join(_figures(values)))
            if scores := "  ".join(_scores(values)):
                self.note(f"step {step}, epoch {values['epoch']:.2f}: {scores}")
            return
        width = len(str(self._num_steps))
        parts = [f"step {step:{width}}/{self._num_steps}", *_figures(values)]
        parts += [f"{speed:>14}", wait, f"{self._time_left(step)} left"]
        parts += _scores(values)
        self.note("  ".join(parts))

    def note(self, text: str) -> None:
        """Prints a line."""
        self._print(Text(shown(text)))

    def warn(self, text: str | None) -> None:
        """Prints a warning, unless it is None."""
        if text:
            self._print(Text.assemble(("warning: ", "bold yellow"), shown(text)))

    def _print(self, text: Text) -> None:
        """Prints a line; only a terminal wraps it."""
        self._console.print(text, soft_wrap=self._bar is None)

    def _time_left(self, step: int) -> str:
        done = step - (step if self._compiled_step is None else self._compiled_step)
        if step == self._num_steps:
            return "0:00"
        if not done:
            return "?:??"
        seconds = (time.monotonic() - self._compiled_time) / done * (self._num_steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Bar(Progress):
    """Two lines: progress and speed, then the figures of the last logged step."""

    def __init__(self, console: Console):
        self._figures = ""  # before super(), which already draws
        super().__init__(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[speed]}"),
            TextColumn(" [cyan]{task.fields[left]} left"),
            console=console,
            expand=True,
            refresh_per_second=4,
        )

    def start_at(self, step: int, num_steps: int) -> None:
        self.add_task("", total=num_steps, completed=step, speed="compiling ...", left="?:??")

    def move(self, step: int, left: str) -> None:
        self.update(self.task_ids[0], completed=step, left=left)

    def show(self, speed: str, figures: str) -> None:
        self._figures = figures
        self.update(self.task_ids[0], speed=speed)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self._figures, style="dim", no_wrap=True, overflow="ellipsis")


def _figures(values: dict[str, float]) -> list[str]:
    texts = [f"{short} {values[name]:{fmt}}" for name, short, fmt in FIGURES if name in values]
    shares = [values[name] for name in sorted(values) if name.startswith("closest_")]
    if shares:
        texts.append("closest " + "/".join(f"{100 * share:2.0f}" for share in shares) + " %")
    return texts


def _scores(values: dict[str, float]) -> list[str]:
    return [f"{what} {values[name]:{fmt}}" for name, what, fmt in MONITORED if name in values]


def accuracy_table(figures: dict[str, float], knn_k: int) -> str:
    """The accuracies of a run beside those to beat, in percent, for people.

    Args:
      figures: some of SCORES, their _error figures and the BASELINES.
      knn_k: the k of knn_top1.
    """
    whose = {"": "pretrained", "untrained": "untrained", "pixels": "raw pixels"}
    rows = [
        ["accuracy, %", *(whose[who] for who in whose if baseline_name("knn_top1", who) in figures)]
    ]
    for name in SCORES:
        if name in figures:
            k = name.removeprefix("few_label_")
            title = f"k-NN, k {knn_k}" if name == "knn_top1" else f"{k} labelled a class"
            rows.append([title, *(_percent(figures, name, who) for who in whose)])
    return "\n".join(
        f"{title:20}{''.join(f'{x:>14}' for x in cells)}".rstrip() for title, *cells in rows
    )


def _percent(figures: dict[str, float], name: str, who: str) -> str:
    name, error = baseline_name(name, who), baseline_name(f"{name}_error", who)
    if name not in figures:
        return ""
    return f"{100 * figures[name]:.1f}" + (
        f" ± {100 * figures[error]:3.1f}" if error in figures else " " * 6
    )
