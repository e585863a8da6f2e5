"""The folder of a run: recorded, recognised, and never mixed with another run's."""

import contextlib
import functools
import json
import os
import pathlib
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from gsg_jax.config.keys import GROUPS, KEYS, free_keys
from gsg_jax.config.load import as_json, differences, is_number
from gsg_jax.config.own import own_parts
from gsg_jax.config.recipes import RECIPES, pretraining
from gsg_jax.console import UserError, say
from gsg_jax.data.source import Source
from gsg_jax.devices.hosts import is_writer
from gsg_jax.methods import METHODS
from gsg_jax.run.files import read_object, write_atomically
from gsg_jax.run.identity import IDENTITY, check_identity, identity
from gsg_jax.run.integrity import check_name, damage, saved_steps
from gsg_jax.run.lock import LOCK, not_writable, writing

# The folder that describes an imported checkpoint.
IMPORTED = "imported"
# The text of the files that registered the run's own parts: kept to be read, and never run.
OWN_PARTS = "own_parts.txt"
_TEXT_FOLLOWS = "\n# The text of"
# What a run writes besides its record.
FOLDERS = ("checkpoints", "tensorboard")
FIGURES = "figures.json"  # the last line of a complete run
LENGTH = ("run.num_epochs", "run.num_steps")  # they may grow once the run is finished
LOGS = ("metrics.jsonl", "throughput.jsonl", "baselines.json", "starts.jsonl", FIGURES)
CHANGES_NOTHING = ("eval.batch_size",)  # keys of an evaluation that change no figure
WRITTEN = (*FOLDERS, "damaged", "left_out.txt", *LOGS)


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> int | None:
    """Checks that DIR holds nothing yet, or a run of the same config; writes nothing.

    The keys that config/keys.py lets change may differ, and the length if the run is finished. A
    start that ended before its first checkpoint has left no record, and its logs are written anew.

    Args:
      workdir: DIR.
      config: resolved.

    Returns:
      The step at which the run in DIR is finished, if the config has another length; else None.

    Raises:
      UserError: if DIR holds another run's config or something else, or cannot hold checkpoints.
    """
    check_name(workdir)
    record_path = workdir / "config.json"
    for name in FOLDERS:  # otherwise a run without checkpoints would begin again and drop its logs
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(
                f"{workdir / name} is not a folder: remove it, or give another --workdir"
            )
    if record_path.exists():
        is_imported = (workdir / IMPORTED).is_dir()
        is_trained = not is_imported or max(saved_steps(workdir), default=0) > 0
        free = free_keys(is_trained=is_trained)
        differing = differences(config, read_config(workdir), free)
        is_length = all(text.startswith(LENGTH) for text in differing)
        finished = finished_step(workdir) if differing and is_length else None
        if differing and finished is None:
            raise UserError(
                f"--workdir={workdir} holds a run of another config, which differs in "
                f"{'; '.join(differing[:5])}: give another --workdir, or the same config to resume"
                + is_length
                * "; once it is finished, a greater length continues it"
            )
        return finished
    is_begun = (workdir / LOCK).exists() and not saved_steps(workdir)
    found = [name for name in WRITTEN if (workdir / name).exists()]
    if found and not is_begun:
        raise UserError(
            f"--workdir={workdir} holds {', '.join(found)} but no config.json: "
            "give another --workdir"
        )
    return None


def finished_step(workdir: pathlib.Path) -> int | None:
    """The step at which the run in DIR is finished; None if it is not, or lacks that checkpoint."""
    # A copy under a later step counts as damaged, so it hides nothing.
    steps = reversed(saved_steps(workdir))
    newest = next((x for x in steps if not damage(workdir / "checkpoints" / str(x))), None)
    # A run killed as it continues has renamed its figures, but has no later checkpoint yet.
    for path in (workdir / FIGURES, workdir / f"figures-{newest}.json"):
        if path.exists() and read_object(path).get("step") == newest:
            return newest
    return None


def extended_from(workdir: pathlib.Path) -> list[int]:
    """The steps at which the run in DIR was finished before it continued to a greater length."""
    steps = [path.stem.removeprefix("figures-") for path in workdir.glob("figures-*.json")]
    return sorted(int(step) for step in steps if step.isdecimal())


def resume(
    workdir: pathlib.Path, config: ConfigDict, sources: dict[str, Source | None], num_steps: int
) -> Callable[[], None]:
    """Checks that DIR holds nothing yet, or a run that continues as it began.

    Args:
      workdir: DIR, held by this process.
      config: resolved.
      sources: the images, by split.
      num_steps: length of the run.

    Returns:
      A function that writes the record, once. Call it with the first checkpoint: a start that fails
      before that leaves DIR as it was.

    Raises:
      UserError: if DIR holds something else, or the run's images or JAX's settings have changed,
        or a finished run would not become longer.
    """
    finished = check_workdir(workdir, config)
    if finished is not None and num_steps <= finished:
        raise UserError(
            f"{workdir} is finished at step {finished}, and this command ends at step {num_steps}: "
            "give a greater --config.run.num_epochs or num_steps, or another --workdir"
        )
    now = identity(sources, config.data.dir)
    check_identity(workdir, now, config.run.accept_changes)
    _warn_of_changed_parts(workdir, config)
    if finished is not None:
        say(
            f"{workdir} was finished at step {finished} and goes on to step {num_steps}: from here "
            f"on, learning rate and EMA decay are those of a run of {num_steps} steps"
        )
    return functools.cache(functools.partial(record_run, workdir, config, now, finished))


def record_run(
    workdir: pathlib.Path, config: ConfigDict, now: dict[str, Any], finished: int | None = None
) -> None:
    """Writes the record of the run in DIR: what it depends on, its own parts' text, its config.

    If the run was finished at a step and continues, its last line is kept as figures-STEP.json.

    Raises:
      UserError: if DIR cannot be written.
    """
    if is_writer():
        if finished is not None and (workdir / FIGURES).exists():
            (workdir / FIGURES).replace(workdir / f"figures-{finished}.json")
        write_record(workdir / "config.json", config)
        write_atomically(workdir / IDENTITY, json.dumps(now, indent=2) + "\n")
        if text := _own_text(config):
            write_atomically(workdir / OWN_PARTS, text)


def _warn_of_changed_parts(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Warns if the files that registered the run's own parts are no longer those of its record."""
    path, parts = workdir / OWN_PARTS, own_parts(config)
    if not parts or not path.is_file():
        return
    before = path.read_text(encoding="utf-8", errors="replace")
    if before.partition(_TEXT_FOLLOWS)[2] != _own_text(config).partition(_TEXT_FOLLOWS)[2]:
        files = ", ".join(dict.fromkeys(origin.file for origin in parts.values()))
        say(f"warning: {files} has changed since this run last started; it goes on with it")


def _own_text(config: ConfigDict) -> str:
    """The names and files of a run's own parts, and the text of the files; "" without any."""
    parts = own_parts(config)
    lines = [f"# {kind} {name}: {origin.file}" for (kind, name), origin in parts.items()]
    texts = [f"{_TEXT_FOLLOWS} {pathlib.Path(x.file).name}:\n\n{x.text}" for x in parts.values()]
    return "\n".join([*lines, *dict.fromkeys(texts)])


def file_of_part(workdir: pathlib.Path, kind: str, name: str) -> str:
    """Returns the file that registered a run's own part, for people; "" if it is not recorded."""
    path = workdir / OWN_PARTS
    if not path.is_file():
        return ""
    start = f"# {kind} {name}: "
    lines = path.read_text(encoding="utf-8", errors="replace").partition(_TEXT_FOLLOWS)[0]
    return "".join(x.removeprefix(start) for x in lines.splitlines() if x.startswith(start))


@contextlib.contextmanager
def claimed_for_evaluation(
    workdir: pathlib.Path, config: ConfigDict, digest: str, now: dict[str, Any]
) -> Iterator[None]:
    """Makes and holds the folder of an evaluation that can be resumed.

    Args:
      workdir: its folder, empty or of the same evaluation.
      config: its config.
      digest: of what it evaluates.
      now: `identity` of its images.

    Raises:
      UserError: if another process writes there, or the folder cannot be written or hold
        checkpoints, or holds another evaluation, or one of other images.
    """
    config = ConfigDict(config.to_dict() | {"digest": digest} | now)
    path = workdir / "config.json"

    def check() -> None:
        if not path.exists():
            return
        if differing := differences(config, read_object(path), CHANGES_NOTHING):
            raise UserError(
                f"{workdir} holds another run or evaluation, which differs in "
                f"{'; '.join(differing[:5])}: give another --workdir"
            )

    check()
    check_name(workdir)
    with writing(workdir):
        check()  # another process may have been first
        write_record(path, config)
        yield


def read_config(workdir: pathlib.Path) -> dict:
    """Returns the config of the run in a workdir, as plain dicts and lists.

    Raises:
      UserError: if DIR holds no run, or its record is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json): give the --workdir of one")
    record = read_object(path)
    if missing := [group for group in GROUPS if group not in record]:
        raise UserError(f"{path} is damaged (no group {missing[0]}): give another --workdir")
    if wrong := [group for group in GROUPS if not isinstance(record[group], dict)]:
        raise UserError(f"{path} is damaged ({wrong[0]} is not a group): give another --workdir")
    for key, row in KEYS.items():
        group, _, name = key.rpartition(".")
        value = (record[group] if group else record).get(name, row.default)
        if not _is_of_kind(value, row.default):
            found = textwrap.shorten(repr(value), 60, placeholder=" ...")
            raise UserError(f"{path} is damaged ({key} is {found}): give another --workdir")
    return _with_newer_keys(record)


def _is_of_kind(value: Any, default: Any) -> bool:
    """Whether a value of a record has the type of its key; text must be usable as a file name."""
    if isinstance(default, str):
        with contextlib.suppress(TypeError, ValueError):
            return b"\0" not in os.fsencode(value)
        return False
    if isinstance(default, bool):
        return isinstance(value, bool)
    return isinstance(value, list | tuple) if isinstance(default, tuple) else is_number(value)


def write_record(path: pathlib.Path, config: ConfigDict) -> None:
    """Writes a config.json and makes its folder; raises UserError if it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, as_json(config))
    except OSError as error:
        raise not_writable(path.parent, error) from error


def _with_newer_keys(record: dict) -> dict:
    """A record with the defaults of keys added since."""
    recipe = str(record.get("recipe"))
    defaults = pretraining(recipe if recipe in RECIPES else "imagenet").to_dict()
    record.setdefault("init_from", "")
    for group in GROUPS:
        record[group] = {**defaults[group], **record[group]}
    row = METHODS.get(record["method"].get("name"))
    for option, key in row.options.items() if row else ():
        if key.has_default:
            record["method"].setdefault(option, key.default)
    return record
