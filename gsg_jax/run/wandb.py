"""The logged steps of a run in Weights & Biases too, where run.wandb_project asks for it.

metrics.jsonl is the record. wandb gets a copy of it, and a failure of wandb costs no step: what it
lacks is in the files, and is handed over when the same command is given again.
"""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterable, Iterator

import ml_collections

from gsg_jax.console import UserError, say
from gsg_jax.devices import hosts
from gsg_jax.run.metrics import write_atomically

# To send what is left at the end of a run; wandb itself would wait for ever.
FINISH_SECONDS = 60


class WandbLog:
    """A run of wandb, the same one however often the run in DIR is interrupted."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path):
        """Begins wandb's run, or goes on with the one of DIR/wandb_id.

        Args:
          config: of the run, resolved; run.wandb_project is not ''.
          workdir: DIR; wandb's own files come to lie in DIR/wandb.

        Raises:
          Exception: of wandb, where it cannot.
        """
        wandb = import_wandb()
        with _standard_output_is_standard_error():
            self._run = wandb.init(
                project=config.run.wandb_project,
                id=_run_id(workdir),
                resume="allow",
                dir=workdir,
                config=config.to_dict(),
                allow_val_change=True,  # of what may change while a run goes on
                reinit="create_new",  # another run of this process is not ours
                # wandb would copy all that is printed.
                settings=wandb.Settings(console="off", finish_timeout=FINISH_SECONDS),
            )
        # The first step that wandb lacks: of one handed over twice it would warn.
        self._next_step = 0 if self._run.disabled else self._run.step

    def catch_up(self, lines: Iterable[dict[str, float]]) -> None:
        """Hands over those of the steps logged before that wandb lacks."""
        for line in lines:
            self.write(line["step"], {name: line[name] for name in line if name != "step"})

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Hands over one logged step, where wandb lacks it; says it once where wandb fails."""
        if self._run is None or step < self._next_step:
            return
        try:
            self._run.log(figures, step=step, commit=True)
        except Exception as error:  # whatever it is, it is not worth the run
            self._run = None
            say(_without(error))

    def close(self, exit_code: int) -> None:
        """Ends wandb's run: 0 for one that may go on, or is done."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code)
        except Exception as error:
            say(_without(error))


@contextlib.contextmanager
def open_wandb(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, is_new: bool
) -> Iterator[WandbLog | None]:
    """Opens wandb's run on the host that writes, where the config asks for it.

    Args:
      config: of the run, resolved.
      workdir: DIR.
      is_new: whether no step is saved yet; an older run goes on without wandb, and says so.

    Yields:
      The log, or None where there is none.

    Raises:
      UserError: where wandb cannot begin, and the run is new.
    """
    if not config.run.wandb_project or not hosts.is_writer():
        yield None
        return
    try:
        log = WandbLog(config, workdir)
    except Exception as error:
        if is_new:
            raise UserError(
                f"--config.run.wandb_project={config.run.wandb_project}: wandb cannot begin "
                f"({_first_line(error)}): mend that, or set WANDB_MODE=offline to send it later, "
                "or leave the project ''"
            ) from error
        say(_without(error))
        log = None
    exit_code = 1
    try:
        yield log
        exit_code = 0
    finally:
        if log:
            log.close(exit_code)


def check_wandb(project: str) -> None:
    """Raises UserError where a project is given and this host would need wandb and has it not."""
    if project and hosts.is_writer():
        import_wandb()


def import_wandb():
    """The wandb module, which then reports no errors of its own to its makers unless told to.

    Raises:
      UserError: where it is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "--config.run.wandb_project needs wandb: pip install 'gsg_jax[wandb]', or leave it ''"
        ) from error
    return wandb


@contextlib.contextmanager
def _standard_output_is_standard_error() -> Iterator[None]:
    """For the process that wandb starts: it may print behind the job's last line."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _run_id(workdir: pathlib.Path) -> str:
    path = workdir / "wandb_id"
    if not path.exists():
        write_atomically(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return path.read_text().strip()


def _without(error: Exception) -> str:
    return (
        f"warning: wandb has failed ({_first_line(error)}): the run goes on without it; what it "
        "lacks is handed over when the same command is given again"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0] or type(error).__name__
