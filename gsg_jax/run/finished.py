"""A complete run: its last line, kept in its workdir and returned again without training."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import resolve
from gsg_jax.console import say
from gsg_jax.run.files import TIMED, read_lines, read_object, write_atomically
from gsg_jax.run.integrity import damage
from gsg_jax.run.workdir import FIGURES, check_workdir, read_config


def write_finished(workdir: pathlib.Path, figures: dict[str, Any]) -> None:
    """Keeps the last line of a complete run."""
    write_atomically(workdir / FIGURES, json.dumps(figures) + "\n")


def read_finished(workdir: pathlib.Path, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the last line of the run in a workdir if nothing is left to do, and says so.

    This takes a second: it opens no data and compiles nothing.

    Args:
      workdir: DIR.
      config: not resolved.

    Returns:
      None if there is no run, or it has to be trained, repaired or reported.

    Raises:
      UserError: if the run in DIR is of another config, or its files are damaged.
    """
    if not (workdir / FIGURES).exists():
        return None
    figures = read_object(workdir / FIGURES)
    step = figures.get("step")
    if type(step) is not int or step != figures.get("num_steps"):
        return None  # not a line of this program's
    if damage(workdir / "checkpoints" / str(step)):
        return None
    patience = config.run.patience_epochs
    if figures.get("patience_epochs", patience) != patience:  # it ended early, and may continue
        return None
    report = workdir / "report.html"
    if config.run.report and not report.is_file():
        return None
    config = config.copy_and_resolve_references()
    if config.data.batch_size == figures.get("batch_size_asked"):  # more than the folder has
        config.data.batch_size = read_config(workdir)["data"]["batch_size"]
    check_pretraining(config)
    if check_workdir(workdir, resolve(config)) is not None:  # it may continue
        return None
    baselines = workdir / "baselines.json"
    if "knn_top1_untrained" in figures and not baselines.exists():
        return None
    for name, names in (("metrics.jsonl", ()), ("throughput.jsonl", TIMED)):
        read_lines(workdir / name, names)
    if baselines.exists():
        read_object(baselines)
    say(f"{workdir} holds this run, finished at step {step}: nothing is left to train")
    if report.is_file():
        say(f"its report is {report}")
    length = "num_steps" if config.run.num_steps else "num_epochs"
    now = config.run[length]
    say(f"to train longer, give --config.run.{length} above {now}")
    return figures
