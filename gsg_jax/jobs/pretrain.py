"""The pretraining job: the run, and at its end the report of it."""

import pathlib
from typing import Any

import ml_collections

from gsg_jax.errors import UserError
from gsg_jax.evaluation import recipes
from gsg_jax.jobs.report import write_report
from gsg_jax.progress import say
from gsg_jax.train import pretrain


def pretrain_and_report(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Pretrains, and writes report.html where the run has come to its end.

    Args:
      config: of configs/, with its overrides.
      workdir: DIR.

    Returns:
      The job's last line: the figures of `pretrain`.

    Raises:
      UserError: as `pretrain` does. A report that cannot be written is told of, and no more: the
        run is done.
    """
    figures = pretrain(config, workdir)
    if not config.run.report or figures["step"] < figures["num_steps"]:
        return figures
    report = recipes.report()
    report.pretrained = str(workdir)
    try:
        write_report(report, workdir)
    except (UserError, OSError) as error:
        say(
            f"warning: the run is done, but not its report ({error}): mend that, and make it by "
            f"--config=configs/report.py --config.pretrained={workdir}"
        )
    return figures
