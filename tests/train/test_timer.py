"""The timer tells steps from compilation, pauses and waiting, on both of its clocks."""

import types

import pytest

from gsg_jax.train import timer as timers


def test_an_interval_has_the_seconds_of_its_steps_and_the_processors_alone(monkeypatch):
    now = {"wall": 100.0, "processor": 7.0}
    clock = types.SimpleNamespace(
        monotonic=lambda: now["wall"], process_time=lambda: now["processor"]
    )
    monkeypatch.setattr(timers, "time", clock)

    def spend(wall: float, processor: float) -> None:
        now["wall"] += wall
        now["processor"] += processor

    timer = timers.Timer(views_per_step=10, seconds_before=1000.0)
    spend(30, 50)  # compiles
    timer.stepped()
    for _ in range(4):
        with timer.waiting():
            spend(0.5, 0.25)
        spend(1.5, 2.75)
        timer.stepped()
    figures = timer.figures()
    wanted = {"views_per_second": 5, "data_wait_share": 0.25, "interval_seconds": 8}
    wanted |= {"interval_processor_seconds": 12, "train_seconds": 1038}
    assert figures == pytest.approx(wanted)
    with timer.paused():
        spend(20, 40)
    spend(2, 3)
    timer.stepped()
    assert timer.figures()["interval_processor_seconds"] == pytest.approx(3)
