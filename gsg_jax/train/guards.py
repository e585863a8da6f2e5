"""What a run watches itself for: a loss that is not finite, a collapse, a signal to stop."""

import collections
import contextlib
import functools
import itertools
import math
import os
import signal
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from gsg_jax.console import UserError, say
from gsg_jax.methods import METHODS
from gsg_jax.train.state import TrainState, finite_groups

STEPS_IN_FLIGHT = 2


class LossGuard:
    """Stops a run with too many bad steps, and says at which step it began.

    A step is bad whose loss or gradient is not finite, or whose gradient norm is above a limit. The
    step itself skips it where that is allowed; what it skips is told here, a line each. The figures
    are read a few steps late, so that the device is never left without work.
    """

    def __init__(
        self,
        mend: Callable[[], str],
        tell: Callable[[str], None] = say,
        *,
        max_skipped_steps: int = 0,
        grad_norm_limit: float = 0.0,
        skipped_before: int = 0,
    ):
        """Takes what the config allows, and how a run is mended.

        Args:
          mend: says what is safe and what to try.
          tell: takes a line for each skipped step.
          max_skipped_steps: how many may be, from the first step of the run on.
          grad_norm_limit: of a step that is not bad; 0 for none.
          skipped_before: how many were, before the first step that is pushed.
        """
        self._mend, self._tell = mend, tell
        self._max_skipped, self._num_skipped = max_skipped_steps, skipped_before
        self._limit = np.float32(grad_norm_limit or np.inf)  # as the step compares
        self._pending = collections.deque()

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step; waits for the step before the last."""
        figures = (metrics["loss"], metrics["grad_norm"], metrics.get("skipped_steps"))
        self._pending.append((step, *figures))
        while len(self._pending) > STEPS_IN_FLIGHT:
            self._check_oldest()

    def check_all(self) -> None:
        """Waits for every step.

        Raises:
          UserError: where one is bad, and no more may be skipped.
        """
        while self._pending:
            self._check_oldest()

    def _check_oldest(self) -> None:
        step, loss, grad_norm, num_skipped = self._pending.popleft()
        fault = self._fault(float(loss), float(grad_norm))
        if num_skipped is None:
            if fault:
                raise UserError(f"{fault} at step {step}: {self._mend()}")
            return
        before, self._num_skipped = self._num_skipped, int(num_skipped)
        if self._num_skipped == before:
            return
        fault = fault or "the state is no longer finite"
        if self._num_skipped > self._max_skipped:
            raise UserError(
                f"{fault} at step {step}, and {before} steps were skipped before it "
                f"(optim.max_skipped_steps is {self._max_skipped}): {self._mend()}"
            )
        self._tell(
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


def check_finite(state: TrainState, mend: Callable[[], str]) -> None:
    """Raises UserError where a state is not finite: a loss can be, a step longer than its state."""
    groups = jax.device_get(_jit_finite_groups()(state))
    if wrong := [name for name, is_finite in groups.items() if not is_finite]:
        raise UserError(f"{wrong[0]} is not finite after step {int(state.step)}: {mend()}")


@functools.cache
def _jit_finite_groups():
    return jax.jit(finite_groups)


class CollapseWatch:
    """Warns when the collapse figures fall, once for each fall."""

    def __init__(self, config: ml_collections.ConfigDict, past: list[dict[str, float]]):
        """Takes the resolved config, and the lines that the run has logged before."""
        self._config = config
        self._highest_rank = max((line.get("embedding_rank", 0.0) for line in past), default=0.0)
        self._has_warned = False

    def warning(self, values: dict[str, float]) -> str | None:
        """Says what has fallen and what to try.

        Args:
          values: of a logged step; projection_std and embedding_rank are looked at.

        Returns:
          One line, or None where all is well or it was said already.
        """
        if not {"embedding_rank", "projection_std"} <= values.keys():
            return None
        self._highest_rank = max(self._highest_rank, values["embedding_rank"])
        signs = self._signs(values)
        said_before, self._has_warned = self._has_warned, bool(signs)
        if not signs or said_before:
            return None
        return f"the representations are collapsing: {', '.join(signs)}. {self._advice()}"

    def _signs(self, values: dict[str, float]) -> list[str]:
        limits = self._config.eval
        lowest_rank = limits.min_rank_share * self._highest_rank
        signs = []
        if values["projection_std"] < limits.min_projection_std:
            signs.append(
                f"std of normalised projections x sqrt(D) is {values['projection_std']:.3f} "
                f"(below {limits.min_projection_std})"
            )
        if values["embedding_rank"] < lowest_rank:
            signs.append(
                f"effective rank of the embeddings is {values['embedding_rank']:.1f} "
                f"(was {self._highest_rank:.1f})"
            )
        return signs

    def _advice(self) -> str:
        method, row = self._config.method, METHODS[self._config.method.name]
        advice = []
        if row.stop_gradient and not method.stop_gradient:
            advice.append("--config.method.stop_gradient=true")
        if row.predictor == "mlp" and method.predictor == "none":
            advice.append("--config.method.predictor=mlp")
        if f"{method.name}_gsg" in METHODS:
            advice.append(f"--config=configs/{method.name}_gsg.py (guided stop-gradient)")
        if row.stop_gradient and method.target == "online":
            advice.append("--config.method.target=ema")
        rate = self._config.optim.learning_rate
        advice.append(f"a lower --config.optim.learning_rate (now {rate:g})")
        return "Try " + ", or ".join(advice)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and the first Ctrl-C into a flag, so that the run can save and stop.

    Of several hosts that are told, or of which one is, all are told at the same step: they have to
    ask equally often.

    Yields:
      A function that says whether one came.
    """
    received = []
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    previous = {}

    def note(number, _frame):
        received.append(number)
        if number == signal.SIGINT:  # a second Ctrl-C stops at once
            signal.signal(signal.SIGINT, previous[signal.SIGINT])
            if jax.process_count() > 1:  # what JAX catches, and tells the other hosts of
                os.kill(os.getpid(), signal.SIGTERM)

    for number in numbers:
        previous[number] = signal.signal(number, note)
    try:
        yield _asks_all_hosts() if jax.process_count() > 1 else lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _asks_all_hosts() -> Callable[[], bool]:
    """A function that is true on all hosts from the same call on, soon after one got SIGTERM."""
    calls = itertools.count()
    is_told = False

    def told_to_stop() -> bool:
        nonlocal is_told
        is_told = is_told or multihost_utils.reached_preemption_sync_point(next(calls))
        return is_told

    return told_to_stop
