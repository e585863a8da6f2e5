"""The folder of a run: made, recognised, and never mixed with another run's."""

import json
import pathlib
from collections.abc import Collection

import ml_collections

from gsg_jax.config.keys import GROUPS, RETIRED, free_keys
from gsg_jax.config.load import as_json, differences
from gsg_jax.config.recipes import RECIPES, pretraining
from gsg_jax.console import UsageError, UserError
from gsg_jax.devices import hosts
from gsg_jax.devices import mesh as meshes
from gsg_jax.run.metrics import is_number, write_atomically

# Where an imported checkpoint is told of.
IMPORTED = "imported"
# What a run writes besides its record.
WRITTEN = (
    *("checkpoints", "damaged", "metrics.jsonl", "throughput.jsonl", "baselines.json"),
    "tensorboard",
)

FOLDERS = ("checkpoints", "tensorboard")


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Makes DIR and its config.json, or checks that DIR holds a run of the same config.

    What makes the batches, which checkpoints are kept and a run's patience may differ; the record
    then says what they are now. An imported checkpoint that no step has moved takes another
    schedule and other images. Of several hosts the first writes, and the others look whether they
    see the same.

    Args:
      workdir: DIR.
      config: resolved.

    Raises:
      UserError: where DIR cannot be written, holds another run's config, holds something else, or
        is not the folder that the first host writes.
    """
    record_path = workdir / "config.json"
    if hosts.is_writer():
        _check_record(workdir, record_path, config)
        write_record(record_path, config)
    meshes.wait_for_hosts("the workdir is claimed")
    if hosts.is_writer():
        return
    if not record_path.exists():
        raise UserError(
            f"--workdir={workdir} is not the folder that host 0 has made: give one on a file "
            "system that all hosts share"
        )
    _check_record(workdir, record_path, config)


def _check_record(
    workdir: pathlib.Path, record_path: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
    for name in FOLDERS:  # else a run without checkpoints would begin anew, and drop its logs
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is no folder: remove it, or give another --workdir")
    if record_path.exists():
        free = free_keys(is_trained=not _is_untrained_import(workdir))
        if differing := differences(config, read_config(workdir), free):
            raise UserError(
                f"--workdir={workdir} holds a run of another config, which differs in "
                f"{'; '.join(differing[:5])}: give another --workdir, or the same config to resume"
            )
    elif found := [name for name in WRITTEN if (workdir / name).exists()]:
        raise UserError(
            f"--workdir={workdir} holds {', '.join(found)} but no config.json: "
            "give another --workdir"
        )


def claim_for_evaluation(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, digest: str
) -> None:
    """Makes the folder of an evaluation that can be resumed, or checks that it holds the same one.

    Args:
      workdir: of the evaluation.
      config: of the evaluation.
      digest: of what it judges.

    Raises:
      UserError: where the folder cannot be written, or holds another evaluation.
    """
    config = ml_collections.ConfigDict(config.to_dict() | {"digest": digest})
    path = workdir / "config.json"
    if path.exists() and (differing := differences(config, read_object(path))):
        raise UserError(
            f"{workdir} holds another run or evaluation, which differs in "
            f"{'; '.join(differing[:5])}: give another --workdir"
        )
    meshes.wait_for_hosts("the folder is looked at")
    write_record(path, config)


def read_config(workdir: pathlib.Path) -> dict:
    """Reads the record of a run.

    Args:
      workdir: DIR.

    Returns:
      The config as plain dicts and lists.

    Raises:
      UserError: where DIR holds no run, or its record is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json): give the --workdir of one")
    record = read_object(path)
    if missing := [group for group in GROUPS if group not in record]:
        raise UserError(f"{path} is damaged (no group {missing[0]}): give another --workdir")
    if wrong := [group for group in GROUPS if not isinstance(record[group], dict)]:
        raise UserError(f"{path} is damaged ({wrong[0]} is no group): give another --workdir")
    return _with_newer_keys(record)


def given_path(flag: str, value: str) -> pathlib.Path:
    """The path that a flag gives, ~ written out; raises UsageError where ~ is nobody's."""
    try:
        return pathlib.Path(value).expanduser()
    except RuntimeError as error:
        raise UsageError(f"--config.{flag}={value}: {error} Give its whole path") from error


def _is_untrained_import(workdir: pathlib.Path) -> bool:
    return (workdir / IMPORTED).is_dir() and not (workdir / "metrics.jsonl").exists()


def write_record(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes a config.json and makes its folder; raises UserError where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, as_json(config))
    except OSError as error:
        raise UserError(
            f"--workdir={path.parent} cannot be written ({error.strerror}): "
            "give a folder that you may write to"
        ) from error


def _with_newer_keys(record: dict) -> dict:
    """A record of an earlier version with the keys that it lacks, and without retired ones."""
    recipe = str(record.get("recipe"))
    defaults = pretraining(recipe if recipe in RECIPES else "imagenet").to_dict()
    for group in GROUPS:
        values = {**defaults[group], **record[group]}
        record[group] = {k: v for k, v in values.items() if f"{group}.{k}" not in RETIRED}
    return record


def read_figures(path: pathlib.Path, names: Collection[str]) -> dict[str, float]:
    """Reads a file of one JSON object of figures; UserError where they are others or no numbers."""
    figures = read_object(path)
    if not figures or not figures.keys() <= set(names) or not all(map(is_number, figures.values())):
        raise UserError(
            f"{path} is damaged (not {' and '.join(names)}): restore it, or give another --workdir"
        )
    return figures


def read_object(path: pathlib.Path) -> dict:
    """Reads a file of one JSON object; raises UserError where it is damaged."""
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}): restore it, or give another --workdir"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged (no object): restore it, or give another --workdir")
    return record
