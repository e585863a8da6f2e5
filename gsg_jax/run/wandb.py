"""A copy of the logged steps in Weights & Biases, if run.wandb_project asks for it.

metrics.jsonl is the record. A failure of wandb costs no step of the run, only lines of the copy.
"""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator
from types import ModuleType

from ml_collections import ConfigDict

from gsg_jax.console import UserError, say
from gsg_jax.devices.hosts import is_writer
from gsg_jax.run.files import write_atomically


@contextlib.contextmanager
def open_wandb(
    config: ConfigDict, workdir: pathlib.Path, *, is_new: bool
) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
    """Opens the run of DIR/wandb_id in wandb, on the host that writes.

    Args:
      config: of the run, resolved.
      workdir: DIR; wandb's own files are in DIR/wandb.
      is_new: whether no step is saved yet; an older run resumes without wandb if wandb fails.

    Yields:
      A function of each logged step and its figures; None without a copy.

    Raises:
      UserError: if wandb cannot begin, and the run is new.
    """
    project, run, exit_code = config.run.wandb_project, None, 1
    try:
        run = _begin(config, workdir) if project and is_writer() else None
    except Exception as error:  # whatever wandb raises
        if is_new:
            raise UserError(
                f"--config.run.wandb_project={project}: wandb cannot begin ({_first_line(error)}): "
                "fix that, or set WANDB_MODE=offline to send it later, or leave the project ''"
            ) from error
        _warn(error)

    def write(step: int, figures: dict[str, float]) -> None:
        nonlocal run
        try:
            if run:
                run.log(figures, step=step, commit=True)
        except Exception as error:
            run = None
            _warn(error)

    try:
        yield write if run else None
        exit_code = 0
    finally:
        try:
            if run:
                run.finish(exit_code)
        except Exception as error:
            _warn(error)


def check_wandb(project: str) -> None:
    """Raises UserError if a project is given and this host needs wandb and lacks it."""
    if project and is_writer():
        import_wandb()


def import_wandb() -> ModuleType:
    """The wandb module, which sends no reports of its own errors; UserError if it is missing."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "--config.run.wandb_project needs wandb: pip install 'gsg_jax[wandb]', or leave it ''"
        ) from error
    return wandb


def _begin(config: ConfigDict, workdir: pathlib.Path):
    wandb, path = import_wandb(), workdir / "wandb_id"
    if path.is_symlink() or not path.is_file():
        write_atomically(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    kept = os.dup(1)
    os.dup2(2, 1)  # wandb's process may print behind the job's last line
    try:
        return wandb.init(
            project=config.run.wandb_project,
            id=path.read_text().strip(),
            resume="allow",
            dir=workdir,
            config=config.to_dict(),
            allow_val_change=True,  # some keys may change when a run resumes
            reinit="create_new",  # another run of this process is not ours
            settings=wandb.Settings(console="off", finish_timeout=60),  # it would wait for ever
        )
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _warn(error: Exception) -> None:
    say(f"warning: wandb has failed ({_first_line(error)}): the run continues without it")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
