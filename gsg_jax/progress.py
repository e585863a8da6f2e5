"""What a person sees of a run, on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

SHORT_NAMES = {
    "loss": "loss",
    "projection_std": "std",
    "embedding_rank": "rank",
    "knn_top1": "k-NN",
}


class RunDisplay:
    """Shows how a run goes on; a context manager."""

    def __init__(self, num_steps: int, first_step: int, console: Console | None = None):
        """Prepares the display of steps first_step to num_steps."""
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._num_steps = num_steps
        self._first_step = first_step
        self._start = time.monotonic()
        self._bar = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"),
                TextColumn("[cyan]{task.fields[left]} left"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task(
                "", total=num_steps, completed=first_step, figures="compiling", left="?"
            )

    def __enter__(self) -> "RunDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_exc_info) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar:
            self._bar.update(self._task, completed=step, left=self._time_left(step))

    def figures(self, step: int, values: dict[str, float], clock: dict[str, float]) -> None:
        """Shows the figures of a logged step."""
        speed = f"{clock['views_per_second']:,.0f} views/s"
        wait = f"data wait {clock['data_wait_share']:.0%}"
        line = "  ".join([f"epoch {values['epoch']:6.2f}", *_figures(values), speed, wait])
        if not self._bar:
            width = len(str(self._num_steps))
            left = self._time_left(step)
            self._console.print(f"step {step:{width}}/{self._num_steps}  {line}  {left} left")
            return
        self._bar.update(self._task, figures=line)
        if "knn_top1" in values:
            top1, epoch = values["knn_top1"], values["epoch"]
            self._console.print(f"epoch {epoch:.0f}: k-NN top-1 {top1:.4f}")

    def note(self, text: str) -> None:
        """Says something once."""
        self._console.print(Text(text))

    def warn(self, text: str | None) -> None:
        """Says something that the user should act on; None is nothing to say."""
        if text:
            self._console.print("[bold yellow]warning:[/]", Text(text))

    def _time_left(self, step: int) -> str:
        done = step - self._first_step
        if done < 2:
            return "?"
        seconds = (time.monotonic() - self._start) / done * (self._num_steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _figures(values: dict[str, float]) -> list[str]:
    formats = {"projection_std": ".2f", "embedding_rank": ".1f"}
    texts = [
        f"{short} {values[name]:{formats.get(name, '.4f')}}"
        for name, short in SHORT_NAMES.items()
        if name in values
    ]
    shares = [values[name] for name in sorted(values) if name.startswith("closest_")]
    if shares:
        texts.append("closest " + "/".join(f"{100 * share:.0f}" for share in shares) + " %")
    return texts


def say(text: str) -> None:
    """Prints a line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)
