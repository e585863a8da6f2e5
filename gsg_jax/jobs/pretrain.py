"""The pretraining job: the run, and at its end the report of it."""

import contextlib
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import ml_collections

from gsg_jax.config import evaluations as recipes
from gsg_jax.console import UserError, say
from gsg_jax.devices import hosts
from gsg_jax.jobs.report import write_report
from gsg_jax.train.loop import pretrain


def pretrain_and_report(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Pretrains, and writes report.html where the run has come to its end.

    Args:
      config: of configs/, with its overrides.
      workdir: DIR.

    Returns:
      The job's last line: the figures of `pretrain`.

    Raises:
      UserError: as `pretrain` does. Of one host, a report that cannot be written is told of, and
        no more: the run is done, and so it is where it is told to stop now.
    """
    figures = pretrain(config, workdir)
    if not config.run.report or figures["step"] < figures["num_steps"]:
        return figures
    report = recipes.report()
    report.pretrained = str(workdir)
    try:
        with _sigterm_as_interrupt():
            write_report(report, workdir)
    except KeyboardInterrupt:
        if hosts.are_several():
            raise
        say("stopped before the report was written; the run is done, the same command writes it")
    except (UserError, OSError) as error:
        if hosts.are_several():  # the others may wait for this one
            raise
        say(
            f"warning: the run is done, but not its report ({error}): mend that, and make it by "
            f"--config=configs/report.py --config.pretrained={workdir}"
        )
    return figures


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM stops the report as Ctrl-C does; of several hosts JAX has a use of its own for it."""
    if hosts.are_several():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
