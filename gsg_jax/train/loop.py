"""The pretraining loop: repeats the step; logs, monitors, saves."""

import contextlib
import json
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import ml_collections

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.check_images import check_images, fit_batch
from gsg_jax.config.load import resolve
from gsg_jax.console import UserError, say
from gsg_jax.data.loader import TrainLoader
from gsg_jax.data.open import Source, open_source
from gsg_jax.data.source import num_channels
from gsg_jax.data.summary import summary
from gsg_jax.devices.hosts import is_writer
from gsg_jax.devices.mesh import global_batch, make_mesh, sharded, wait_for_hosts, whole
from gsg_jax.evaluation.features import Embed, backbone_embed, pixels
from gsg_jax.evaluation.monitor import Monitor
from gsg_jax.run.checkpoint import Checkpoints, state_digest
from gsg_jax.run.files import read_figures, read_lines, write_atomically
from gsg_jax.run.finished import write_finished
from gsg_jax.run.integrity import saved_steps
from gsg_jax.run.left_out import LeftOut
from gsg_jax.run.lock import writing
from gsg_jax.run.metrics import TIMED, MetricsLog
from gsg_jax.run.record import BASELINES, last_figures
from gsg_jax.run.starts import write_start
from gsg_jax.run.wandb import check_wandb, open_wandb
from gsg_jax.run.watchdog import Watchdog
from gsg_jax.run.workdir import check_workdir, extended_from, resume
from gsg_jax.train.build import build_experiment, build_loader, jit_step
from gsg_jax.train.display import RunDisplay, accuracy_table
from gsg_jax.train.figures import logged_figures
from gsg_jax.train.guards import (
    CollapseWatch,
    LossGuard,
    NotFinite,
    Patience,
    check_finite,
    stop_signals,
    what_to_do,
)
from gsg_jax.train.optim import learning_rate_schedule, run_length
from gsg_jax.train.start import read_start, started
from gsg_jax.train.state import TrainState, init_state, skipped_steps
from gsg_jax.train.timer import Timer, mean_views_per_second


def pretrain(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Pretrains, or resumes the run in `workdir`; returns the final figures, the job's last line.

    Args:
      config: from configs/, with its overrides.
      workdir: folder of the run; docs/runs.md lists the files that it holds afterwards.

    Raises:
      UserError: for whatever the user can fix, before anything is written; for a bad step, after
        which the last good checkpoint is kept.
    """
    check_pretraining(config)
    config = resolve(config)
    check_wandb(config.run.wandb_project)
    train, test = open_source(config.data, "train"), open_source(config.data, "test")
    lowered = fit_batch(config, train)
    check_pretraining(config)
    check_workdir(workdir, config)
    mesh = make_mesh(config.data.batch_size, config.run.fsdp)
    is_monitored = check_images(config, train, test)
    loader = build_loader(config, train)
    num_steps = run_length(config, loader.steps_per_epoch)
    is_new = not saved_steps(workdir)
    start = read_start(config, num_channels(train)) if is_new else None
    about, *notes = summary(train, test)
    about = (
        f"pretraining {config.method.name}, recipe {config.recipe}, on {about}; workdir {workdir}"
    )
    with writing(workdir) as keep_lock:
        record = resume(workdir, config, {"train": train, "test": test}, num_steps)
        say(about, *notes)
        left_out = LeftOut(workdir / "left_out.txt")
        if is_writer():
            left_out.add(*getattr(train, "left_out", ()))
        loader.when_skipped = left_out.add
        monitor = Monitor(config, train, test) if is_monitored else None
        before_save = lambda: keep_lock() or record()  # noqa: E731
        run = Pretraining(
            config, workdir, mesh, loader, monitor, train, num_steps, before_save, start
        )
        figures = run.run() | lowered
        figures |= {"num_left_out": len(left_out)} if len(left_out) else {}
        if before := extended_from(workdir):
            figures["extended_from"] = before
        if figures["step"] == figures["num_steps"]:
            write_finished(workdir, figures)
        return figures


class Pretraining:
    """One run in its workdir."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        mesh: jax.sharding.Mesh,
        loader: TrainLoader,
        monitor: Monitor | None,
        train: Source,
        num_steps: int,
        record: Callable[[], None],
        start: dict[str, Any] | None,
    ):
        """Prepares the run from what `pretrain` has checked and built."""
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.loader, self.monitor = loader, monitor
        self.channels = num_channels(train)
        self.num_steps, self.is_early = num_steps, False
        length = {"num_steps": num_steps, "steps_per_epoch": loader.steps_per_epoch}
        self.experiment = build_experiment(config, **length, num_classes=len(train.class_names))
        self._init = partial(init_state, self.experiment, self.channels)
        shapes = jax.eval_shape(self._init)
        self.shardings = sharded(mesh, shapes)
        self.step = jit_step(self.experiment, mesh, shapes)
        self.schedule = learning_rate_schedule(
            config.optim, batch_size=config.data.batch_size, **length
        )
        keep = (config.run.keep_checkpoints, config.run.keep_every)
        self.checkpoints = Checkpoints(workdir, *keep, last_step=self.num_steps)
        self.watchdog = Watchdog(config.run.watchdog_seconds, workdir)
        self.record, self.start = record, start

    def run(self) -> dict[str, Any]:
        """Trains to the end, or until a stop is requested; returns the final figures."""
        is_new = not self.checkpoints.newest_step()
        wandb = open_wandb(self.config, self.workdir, is_new=is_new)
        with stop_signals() as stop_requested, wandb as copy, self.watchdog, self.checkpoints:
            state, first_step = self._initial_state()
            baselines = self._baselines(state, first_step)
            if first_step < self.num_steps:
                write_start(self.workdir, first_step)
                say("compiling the train step: seconds for a small network, minutes for a large")
            writer = MetricsLog(self.workdir, first_step, copy, self.config.run.log_every_steps)
            num_views = self.config.method.num_views + self.config.views.num_local
            timer = Timer(num_views * self.config.data.batch_size, writer.seconds_before)
            display = RunDisplay(self.num_steps, first_step)
            with contextlib.closing(writer), display:
                state = self._loop(state, first_step, writer, timer, display, stop_requested)
            self.watchdog.moved()
            train_seconds = timer.train_seconds()
        intervals = read_lines(self.workdir / "throughput.jsonl", TIMED)
        figures = {
            **{"job": "pretrain", "method": self.config.method.name},
            **last_figures(read_lines(self.workdir / "metrics.jsonl"), state.step, self.num_steps),
            **baselines,
            "views_per_second": round(mean_views_per_second(intervals), 1),
            "train_seconds": round(train_seconds, 1),
            "state_digest": state_digest(state),
            # With another patience a run that ended early resumes.
            **({"patience_epochs": self.config.run.patience_epochs} if self.is_early else {}),
        }
        if "knn_top1" in figures and figures["step"] == self.num_steps:
            say(*accuracy_table(figures, self.monitor.k).splitlines())
        say(f"the run is in {self.workdir}")
        return figures

    def _initial_state(self) -> tuple[TrainState, int]:
        state = jax.jit(self._init, out_shardings=self.shardings)()
        if (newest := self.checkpoints.newest_step()) is None:
            if self.start:
                state = jax.jit(started, out_shardings=self.shardings)(state, self.start)
                # A resumed run reads no other run's weights.
                self.checkpoints.save(state, None, wait=True, record=self.record)
            return state, 0
        say(f"resuming from the checkpoint of step {newest} in {self.workdir}")
        return self.checkpoints.restore(newest, state), newest

    def _baselines(self, state: TrainState, first_step: int) -> dict[str, float]:
        """The figures to beat, measured once, before the first step."""
        path = self.workdir / "baselines.json"
        if self.monitor is None or not self.monitor.has_labels:
            return {}
        is_there = first_step > 0 and path.exists()  # else it may be from a failed start
        wait_for_hosts("the baselines are looked for")
        if is_there:
            return read_figures(path, BASELINES)
        if first_step:
            raise UserError(
                f"{path} is missing and can only be measured at step 0: start in another --workdir"
            )
        say("compiling the encoder, to score what the run has to beat")
        encoders = {"untrained": self._embed(state)}
        if self.config.eval.knn_pixels:
            encoders["pixels"] = pixels
        baselines = self.monitor.baselines(encoders)
        write_atomically(path, json.dumps(baselines) + "\n")
        scores = ", ".join(f"{who} {baselines[f'knn_top1_{who}']:.4f}" for who in encoders)
        say(f"k-NN top-1 to beat: {scores}")
        return baselines

    def _loop(
        self,
        state: TrainState,
        first_step: int,
        writer: MetricsLog,
        timer: Timer,
        display: RunDisplay,
        stop_requested: Callable[[], bool],
    ) -> TrainState:
        losses = self._loss_guard(state, display)
        collapse = CollapseWatch(self.config, writer.past)
        patience = Patience(self.config, writer.past)
        if patience.reason:  # the run was killed as it ended early
            self.num_steps, self.is_early = first_step, first_step < self.num_steps
        batches = self.loader.iterate(first_step)
        step = first_step
        while (step := step + 1) <= self.num_steps:
            if stop_requested():
                self._save_in_hand(state, step - 1, losses, writer)
                is_saved = self.checkpoints.newest_step() is not None
                how = "and saved" if is_saved else "with nothing to save"
                display.note(f"stopped at step {step - 1} {how}: the same command resumes the run")
                break
            self.watchdog.moved(is_compiling=step == first_step + 1)
            with timer.waiting():
                try:
                    batch = next(batches)
                except Exception:
                    self._keep(state, step - 1, losses, writer)
                    raise
                images = (batch["image"], batch["local"]) if "local" in batch else batch["image"]
                inputs = (images, batch["label"]) if self.experiment.probe else (images,)
                inputs = global_batch(self.mesh, inputs)
            state, metrics = self.step(state, *inputs)
            losses.push(step, metrics)
            timer.stepped()
            display.advance(step)
            if not (self._logs_at(step) or self._saves_at(step)):
                continue

            losses.check_all()
            speed = timer.figures()
            with timer.paused():
                values = self._values(step, metrics)
                try:
                    values |= self._monitor_figures(step, state)
                    if patience.is_over(values) and step < self.num_steps:
                        values |= self._end_at(step, state, patience)
                except NotFinite:
                    raise
                except Exception:
                    writer.write(step, values, speed)
                    self._keep(state, step, losses, writer)
                    raise
                writer.write(step, values, speed)
                display.figures(step, values, speed)
                display.warn(collapse.warning(values))
                if self._saves_at(step):
                    self._save(state, values.get("knn_top1"), writer, step == self.num_steps)
        return state

    def _loss_guard(self, state: TrainState, display: RunDisplay) -> LossGuard:
        optim = self.config.optim
        return LossGuard(
            *(self._what_to_do, display.warn),
            max_skipped_steps=optim.max_skipped_steps,
            grad_norm_limit=optim.grad_norm_limit,
            skipped_before=int(skipped_steps(state)),
        )

    def _end_at(self, step: int, state: TrainState, patience: Patience) -> dict[str, float]:
        """Ends the run at a step; returns the figures of a last step."""
        say(f"the run ends at step {step} of {self.num_steps}: {patience.reason}")
        self.num_steps, self.is_early = step, True
        return self._monitor_figures(step, state)

    def _save(self, state: TrainState, knn_top1: float | None, writer: MetricsLog, is_last: bool):
        self.watchdog.moved()
        check_finite(state, self._what_to_do)
        writer.flush()  # a checkpoint implies the lines up to its step
        self.checkpoints.save(state, knn_top1, wait=is_last, record=self.record)

    def _save_in_hand(
        self, state: TrainState, step: int, losses: LossGuard, writer: MetricsLog
    ) -> None:
        """Saves the state after a step, unless it is saved already or bad."""
        losses.check_all()
        if step > (self.checkpoints.newest_step() or 0):
            self._save(state, None, writer, is_last=True)

    def _keep(self, state: TrainState, step: int, losses: LossGuard, writer: MetricsLog) -> None:
        """Saves the current state because the data fail; several hosts only save together."""
        if jax.process_count() == 1 and step:
            self._save_in_hand(state, step, losses, writer)
            say(f"step {step} is saved, and the data fail after it: the same command resumes there")

    def _saves_at(self, step: int) -> bool:
        is_due = step % self.config.run.checkpoint_every_steps == 0 or step == self.num_steps
        return is_due or self._monitors_at(step)

    def _monitors_at(self, step: int) -> bool:
        if self.monitor is None:
            return False
        interval = self.config.eval.knn_every_epochs * self.loader.steps_per_epoch
        return step % interval == 0 or step == self.num_steps

    def _values(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        epoch, is_due = step / self.loader.steps_per_epoch, self._logs_at(step)
        return logged_figures(metrics, step, epoch, self.schedule, is_due=is_due)

    def _logs_at(self, step: int) -> bool:
        return step % self.config.run.log_every_steps == 0

    def _monitor_figures(self, step: int, state: TrainState) -> dict[str, float]:
        """The monitor's figures if they are due at a step, else {}."""
        if not self._monitors_at(step):
            return {}
        try:
            probe = whole(self.mesh, state.params.get("probe"))
            how = {"is_whole": step == self.num_steps, "view_embed": self._embed(state, True)}
            return self.monitor.figures(self._embed(state), probe, **how)
        except ValueError as error:  # embeddings that are not finite
            raise NotFinite(f"the monitor at step {step}: {error} {self._what_to_do()}") from error

    def _embed(self, state: TrainState, of_views: bool = False) -> Embed:
        embed = backbone_embed(
            self.experiment.online.backbone,
            whole(self.mesh, state.params["backbone"]),
            whole(self.mesh, state.batch_stats["backbone"]),
            self.config.views,
            self.mesh,
            num_views=of_views * self.config.eval.lidar_views,
        )

        def watched(images):
            self.watchdog.moved()
            return embed(images)

        return watched

    def _what_to_do(self) -> str:
        return what_to_do(self.workdir, self.checkpoints.newest_step(), self.config.optim)
