"""Watches a run for bad steps, collapse, and signals to stop."""

import collections
import contextlib
import itertools
import math
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from gsg_jax.console import UserError, say
from gsg_jax.methods import METHODS
from gsg_jax.train.state import TrainState, finite_groups

STEPS_IN_FLIGHT = 2


class NotFinite(UserError):
    """The monitor's embeddings are not finite, so the state is not worth keeping."""


def what_to_do(workdir: pathlib.Path, newest: int | None, optim: ml_collections.ConfigDict) -> str:
    """Which checkpoint a run keeps after a bad step, and what to try."""
    kept = "there is no checkpoint yet" if newest is None else f"step {newest} is kept"
    return (
        f"{kept} in {workdir}; start in another --workdir with a lower "
        f"--config.optim.learning_rate (now {optim.learning_rate:g}) or some "
        "--config.optim.warmup_epochs, or resume here with a higher "
        f"--config.optim.max_skipped_steps (now {optim.max_skipped_steps})"
    )


class LossGuard:
    """Stops a run at its first bad step, or at the first that may no longer be skipped.

    A step is bad if its loss or gradient is not finite, or its gradient norm exceeds a limit. The
    step itself does the skipping; this class reports each skipped step in a line. It reads the
    figures a few steps late, so that the device always has work.
    """

    def __init__(
        self,
        advice: Callable[[], str],
        warn: Callable[[str], None] = say,
        *,
        max_skipped_steps: int = 0,
        grad_norm_limit: float = 0.0,
        skipped_before: int = 0,
    ):
        """Prepares the guard.

        Args:
          advice: returns which checkpoint is kept and what to try.
          warn: takes a line for each skipped step.
          max_skipped_steps: most steps that the whole run may skip.
          grad_norm_limit: largest gradient norm of a good step; 0 for none.
          skipped_before: steps skipped before the first one that is pushed.
        """
        self._advice, self._warn = advice, warn
        self._max_skipped, self._num_skipped = max_skipped_steps, skipped_before
        self._limit = np.float32(grad_norm_limit or np.inf)  # as the step compares
        self._pending = collections.deque()

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step; waits for the step STEPS_IN_FLIGHT before it."""
        figures = (metrics["loss"], metrics["grad_norm"], metrics.get("skipped_steps"))
        self._pending.append((step, *figures))
        while len(self._pending) > STEPS_IN_FLIGHT:
            self._check_oldest()

    def check_all(self) -> None:
        """Waits for all steps; raises UserError if one is bad and may not be skipped."""
        while self._pending:
            self._check_oldest()

    def _check_oldest(self) -> None:
        step, loss, grad_norm, num_skipped = self._pending.popleft()
        fault = self._fault(float(loss), float(grad_norm))
        if num_skipped is None:
            if fault:
                raise UserError(f"{fault} at step {step}: {self._advice()}")
            return
        before, self._num_skipped = self._num_skipped, int(num_skipped)
        if self._num_skipped == before:
            return
        fault = fault or "the state is no longer finite"
        if self._num_skipped > self._max_skipped:
            raise UserError(
                f"{fault} at step {step}, and {before} steps were skipped before it "
                f"(optim.max_skipped_steps is {self._max_skipped}): {self._advice()}"
            )
        self._warn(
            f"step {step} is skipped, {fault}: {self._num_skipped} of at most "
            f"{self._max_skipped} (optim.max_skipped_steps)"
        )

    def _fault(self, loss: float, grad_norm: float) -> str | None:
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
        if grad_norm > self._limit:
            return (
                f"the gradient norm is {grad_norm:g}, above optim.grad_norm_limit={self._limit:g}"
            )
        return None


def check_finite(state: TrainState, advice: Callable[[], str]) -> None:
    """Raises UserError if a state is not finite; its loss may still be finite for one more step."""
    groups = jax.device_get(_jit_finite_groups(state))
    if wrong := [name for name, is_finite in groups.items() if not is_finite]:
        raise UserError(f"{wrong[0]} is not finite after step {int(state.step)}: {advice()}")


_jit_finite_groups = jax.jit(finite_groups)


class CollapseWatch:
    """Warns once each time that the collapse figures fall."""

    def __init__(self, config: ml_collections.ConfigDict, past: list[dict[str, float]]):
        """Takes the resolved config and the lines that the run has logged so far."""
        self._config = config
        self._highest_rank = max((line.get("embedding_rank", 0.0) for line in past), default=0.0)
        self._has_warned = False

    def warning(self, values: dict[str, float]) -> str | None:
        """Returns one line that says which figure of a logged step has fallen and what to try.

        It is None if no figure has fallen or one is missing, or if one had fallen at the previous
        call too.
        """
        if not {"embedding_rank", "projection_std"} <= values.keys():
            return None
        signs = self.signs(values)
        said_before, self._has_warned = self._has_warned, bool(signs)
        if not signs or said_before:
            return None
        return f"the representations are collapsing: {', '.join(signs)}. {self._advice()}"

    def signs(self, values: dict[str, float]) -> list[str]:
        """Returns which figures of a logged step are below their limits."""
        limits, std, rank = self._config.eval, values["projection_std"], values["embedding_rank"]
        self._highest_rank = max(self._highest_rank, rank)
        lowest, highest = limits.min_projection_std, self._highest_rank
        signs = []
        if std < lowest:
            signs.append(f"std of normalised projections x sqrt(D) is {std:.3f} (below {lowest})")
        if rank < limits.min_rank_share * highest:
            signs.append(f"effective rank of the embeddings is {rank:.1f} (was {highest:.1f})")
        return signs

    def _advice(self) -> str:
        method, row = self._config.method, METHODS[self._config.method.name]
        rate, guided = self._config.optim.learning_rate, f"{method.name}_gsg"
        advice = {
            "--config.method.stop_gradient=true": row.stop_gradient and not method.stop_gradient,
            "--config.method.predictor=mlp": (row.predictor, method.predictor) == ("mlp", "none"),
            f"--config={guided} (guided stop-gradient)": guided in METHODS,
            "--config.method.target=ema": row.stop_gradient and method.target == "online",
            f"a lower --config.optim.learning_rate (now {rate:g})": True,
        }
        return "Try " + ", or ".join(text for text, applies in advice.items() if applies)


class Patience:
    """Tells when a run should end: no better k-NN, or a collapse, for run.patience_epochs.

    Attributes:
      reason: why the run is over, in words; "" if it is not.
    """

    def __init__(self, config: ml_collections.ConfigDict, past: list[dict[str, float]]):
        """Takes the resolved config and the lines that the run has logged so far."""
        self._epochs, self.reason = config.run.patience_epochs, ""  # 0 sets no limit
        self._collapse = CollapseWatch(config, [])  # the loop below replays the past
        self._best, self._best_epoch, self._sound_epoch = -1.0, 0.0, 0.0
        for line in past:
            self.is_over(line)

    def is_over(self, values: dict[str, float]) -> bool:
        """Takes a logged step's figures; returns whether the run should end there."""
        epoch, top1 = values.get("epoch", 0.0), values.get("knn_top1", -1.0)
        if top1 > self._best:
            self._best, self._best_epoch = top1, epoch
        has_figures = {"embedding_rank", "projection_std"} <= values.keys()
        if has_figures and not self._collapse.signs(values):
            self._sound_epoch = epoch
        self.reason = ""
        if self._epochs and "knn_top1" in values and epoch - self._best_epoch >= self._epochs:
            self.reason = f"k-NN is not above the {self._best:.4f} of epoch {self._best_epoch:g}"
        elif self._epochs and has_figures and epoch - self._sound_epoch >= self._epochs:
            self.reason = f"the representations have collapsed since epoch {self._sound_epoch:g}"
        return bool(self.reason)


_late: list[int] = []  # signals that no call of stop_requested has answered
# Numbers the calls on several hosts: all get JAX's answer to a signal at the same number.
_calls = itertools.count()


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM, SIGHUP or one Ctrl-C has asked to stop.

    If any host is asked to stop, all stop at the same step, provided that all call the function
    equally often. A signal after the last call is answered by the next block. SIGHUP, of a closed
    terminal, stays ignored under nohup. Outside the main thread, where Python allows no handlers,
    none are set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _stop_of_any_host() if jax.process_count() > 1 else lambda: False
        return
    received, is_answered = _late[:], False
    _late.clear()
    previous, are_several = {}, jax.process_count() > 1
    numbers = [signal.SIGINT] if are_several else [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def note(number, _frame):
        received.append(number)
        if number == signal.SIGINT:  # a second Ctrl-C stops at once
            signal.signal(signal.SIGINT, previous[signal.SIGINT])
        if are_several:  # JAX catches it and notifies the other hosts
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_requested() -> bool:
        nonlocal is_answered
        is_answered = bool(received)
        return is_answered

    for number in numbers:
        previous[number] = signal.signal(number, note)
    try:
        yield _stop_of_any_host() if are_several else stop_requested
        if not (is_answered or are_several):
            _late.extend(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop_of_any_host() -> Callable[[], bool]:
    """A function that returns True on all hosts, from the same call on, once any got SIGTERM."""
    is_requested = False

    def stop_requested() -> bool:
        nonlocal is_requested
        is_requested = is_requested or multihost_utils.reached_preemption_sync_point(next(_calls))
        return is_requested

    return stop_requested
