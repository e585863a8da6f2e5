"""The pretraining job: the run, and a report of it at its end."""

import pathlib
import shlex
from typing import Any

import ml_collections

from gsg_jax.config import evaluations
from gsg_jax.console import UserError, say
from gsg_jax.devices import hosts
from gsg_jax.jobs.report import ReportStopped, write_report
from gsg_jax.run.files import read_object
from gsg_jax.run.identity import IDENTITY
from gsg_jax.train.guards import stop_signals
from gsg_jax.train.loop import pretrain

NEXT = """what to do next:
  embed     python -c "import gsg_jax; print(gsg_jax.load('{folder}').embed(['a.jpg']))"
  search    gsg-jax search {workdir} {query}
  evaluate  gsg-jax {evaluation} --config.pretrained={workdir}"""


def pretrain_and_report(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Pretrains, and writes report.html once the run is complete.

    The run does not depend on its report: a report that is stopped or cannot be written is reported
    in one line. On several hosts such an error ends the job, because the others may wait.

    Returns:
      The job's last line: the figures of `pretrain`.

    Raises:
      UserError: as `pretrain` does.
    """
    figures = pretrain(config, workdir)
    if figures["step"] < figures["num_steps"]:
        return figures
    if not config.run.report:
        return figures
    say("writing the report")
    report = evaluations.evaluation("report")
    report.pretrained = str(workdir)
    try:
        # All hosts ask equally often while they embed; then only the one that writes goes on.
        with stop_signals() as stop_requested:
            write_report(report, workdir, stop_requested)
        query = "--image=a.jpg" if config.data.name == "folder" else "--duplicates"
        words = {"folder": workdir, "workdir": shlex.quote(str(workdir)), "query": query}
        words["evaluation"] = "evaluate_all" if _has_labelled_test(workdir) else "knn"
        lines = NEXT.format(**words).splitlines()
        say(*(lines if "knn_top1" in figures else lines[:-1]))  # without labels nothing to evaluate
    except (ReportStopped, KeyboardInterrupt):
        say("stopped before the report was written; the run is done, the same command writes it")
    except (UserError, OSError) as error:
        if hosts.are_several():
            raise
        say(
            f"warning: the run is done, but not its report ({error}): fix that, then make it by "
            f"--config=report --config.pretrained={workdir}"
        )
    return figures


def _has_labelled_test(workdir: pathlib.Path) -> bool:
    """Whether the run has test images of its training images' classes."""
    images = read_object(workdir / IDENTITY) if (workdir / IDENTITY).is_file() else {}
    return "test" in images and images["test"]["classes"] == images["train"]["classes"]
