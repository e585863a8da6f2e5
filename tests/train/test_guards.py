"""A bad step, a collapse or a signal is noticed at the right step, once, with advice."""

import concurrent.futures
import math
import signal

import jax.numpy as jnp
import pytest

from gsg_jax.console import UserError
from gsg_jax.train import guards
from gsg_jax.train.guards import (
    STEPS_IN_FLIGHT,
    CollapseWatch,
    LossGuard,
    Patience,
    stop_signals,
)
from tests.small import small_config

GOOD = {"loss": jnp.float32(0.5), "grad_norm": jnp.float32(1)}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_the_step_at_which_a_figure_was_not_finite_is_named_a_few_steps_later(name, wrong):
    guard = LossGuard(lambda: "try this")
    for step in (1, 2, 3):
        guard.push(step, GOOD)
    guard.push(4, GOOD | {name: jnp.float32(wrong)})
    with pytest.raises(UserError) as error:
        for step in range(5, 6 + STEPS_IN_FLIGHT):
            guard.push(step, {key: jnp.float32(math.nan) for key in GOOD})
    said = {"loss": "loss", "grad_norm": "gradient norm"}[name]
    assert str(error.value) == f"the {said} is {wrong} at step 4: try this"


def test_check_all_waits_for_the_last_step():
    guard = LossGuard(lambda: "")
    guard.push(1, GOOD)
    guard.check_all()
    guard.push(2, GOOD | {"loss": jnp.float32(math.nan)})
    with pytest.raises(UserError, match="at step 2"):
        guard.check_all()


def figures(rank, std=0.9):
    return {"embedding_rank": rank, "projection_std": std}


def watching(method="simsiam", **overrides):
    config = small_config(method, **overrides)
    config.eval.update({"min_projection_std": 0.5, "min_rank_share": 0.5})
    return config


def watch(past=(), method="simsiam", **overrides):
    return CollapseWatch(watching(method, **overrides), list(past))


def test_a_fall_of_the_rank_is_warned_of_once_and_a_second_fall_again():
    collapse = watch()
    told = [collapse.warning(figures(rank)) for rank in (8, 10, 4.9, 3, 2, 6, 11, 5.6, 5.4)]
    assert [n for n, text in enumerate(told) if text] == [2, 8]
    assert "effective rank of the embeddings is 4.9 (was 10.0)" in told[2]
    assert "5.4 (was 11.0)" in told[8]


def test_patience_ends_with_a_knn_that_does_not_rise_or_with_a_lasting_collapse():
    def ends(epochs, lines, past=()):
        config = watching()
        config.run.patience_epochs = epochs
        patience = Patience(config, list(past))
        found = [n for n, line in enumerate(lines, len(past) + 1) if patience.is_over(line)]
        return found[:1], patience.reason

    scores = [{"epoch": n, "knn_top1": x} for n, x in enumerate((0.3, 0.5, 0.4, 0.5, 0.45), 1)]
    assert ends(0, scores) == ([], "") and ends(4, scores)[0] == []
    for split in range(4):  # resumed anywhere
        assert ends(2, scores[split:], scores[:split])[0] == [4]
    assert "0.5000 of epoch 2" in ends(2, scores)[1]
    sound, collapsed = figures(10), figures(10, 0.1)
    states = [sound, collapsed, sound, collapsed, collapsed, collapsed]
    lines = [{"epoch": n, **state} for n, state in enumerate(states, 1)]
    assert ends(3, lines)[0] == [6] and "collapsed since epoch 3" in ends(3, lines)[1]
    # What was sound when it was logged stays so, though the rank was higher later.
    rising = [figures(20), figures(50, 0.4), figures(22)]
    lines = [{"epoch": n, **state} for n, state in enumerate(rising, 1)]
    assert ends(3, lines) == ends(3, lines[2:], lines[:2]) == ([], "")


def test_a_fall_of_the_deviation_is_warned_of():
    collapse = watch()
    assert collapse.warning(figures(10, 0.51)) is None
    text = collapse.warning(figures(10, 0.49))
    assert "std of normalised projections x sqrt(D) is 0.490 (below 0.5)" in text
    assert "rank" not in text


def test_lines_without_the_figures_change_nothing():
    collapse = watch()
    collapse.warning(figures(10))
    assert collapse.warning(figures(2))
    assert collapse.warning({"loss": 1.0}) is None
    assert collapse.warning(figures(2)) is None


def test_a_resumed_run_remembers_its_highest_rank():
    past = [{"step": 1, **figures(10)}, {"step": 2, "loss": 0.0}, {"step": 3, **figures(6)}]
    assert "(was 10.0)" in watch(past).warning(figures(4))
    assert watch().warning(figures(4)) is None


@pytest.mark.parametrize(
    ("method", "overrides", "advice", "not_advised"),
    [
        ("simsiam", {"stop_gradient": False}, "--config.method.stop_gradient=true", None),
        ("simsiam", {"predictor": "none"}, "--config.method.predictor=mlp", "stop_gradient"),
        ("simsiam", {}, "--config=simsiam_gsg ", "predictor=mlp"),
        ("byol_gsg", {}, "learning_rate (now 2)", "target=ema"),
        ("simsiam_gsg", {}, "--config.method.target=ema", "--config=simsiam_gsg "),
    ],
)
def test_the_warning_says_what_to_try(method, overrides, advice, not_advised):
    text = watch(method=method, **overrides).warning(figures(1, 0.1))
    assert "\n" not in text and advice in text
    assert not not_advised or not_advised not in text


def test_in_a_thread_no_signal_is_caught():
    def ask():
        with stop_signals() as stop_requested:
            return stop_requested()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask).result() is False


def test_signals_become_a_flag_and_the_old_handlers_come_back():
    under_nohup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may be
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in before:
            with stop_signals() as stop_requested:
                assert not stop_requested()
                signal.raise_signal(number)
                assert stop_requested()
            assert {n: signal.getsignal(n) for n in before} == before
    finally:
        signal.signal(signal.SIGHUP, under_nohup)


def test_a_second_ctrl_c_stops_at_once_and_the_old_handlers_come_back():
    # Python's own handler: in the background, where tests may run, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), stop_signals():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_nohup_keeps_a_run_from_stopping_with_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop_requested:
            signal.raise_signal(signal.SIGHUP)
            assert not stop_requested()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_after_the_last_step_stops_the_report_and_an_answered_one_does_not():
    with stop_signals() as stop_requested:
        assert not stop_requested()
        signal.raise_signal(signal.SIGTERM)
    with stop_signals() as stop_requested:
        assert stop_requested()
        signal.raise_signal(signal.SIGTERM)
    with stop_signals() as stop_requested:
        assert not stop_requested()


def test_several_hosts_never_ask_at_a_number_again_since_jax_answers_at_one(monkeypatch):
    """What comes between two blocks is answered at the number after the last that was asked."""
    asked = []

    def reached(number):
        asked.append(number)
        return number == asked[0] + 3

    monkeypatch.setattr(guards.jax, "process_count", lambda: 2)
    monkeypatch.setattr(guards.multihost_utils, "reached_preemption_sync_point", reached)
    answers = []
    for _ in range(2):
        with stop_signals() as stop_requested:
            answers += [stop_requested() for _ in range(3)]
    assert answers == [False] * 3 + [True] * 3  # a stop stays asked for
    assert asked == list(range(asked[0], asked[0] + 4))
