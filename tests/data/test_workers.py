"""Worker processes: the same batches as threads, clear errors, and none that stays behind."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import chex
import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.folder import FolderSource
from gsg_jax.data.loader import TrainLoader
from gsg_jax.data.source import ArraySource, Subset
from tests.data.pickled import Deadly, Faulty, Numbered
from tests.runs import ROOT, is_running

CROPS = CropRecipe(2, 24, num_local=3, local_size=10)


def folder_of(directory, num_images=12):
    """Photographs as PNG, each of another size."""
    paths = tuple(directory / f"{i:02}.png" for i in range(num_images))
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 70 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return FolderSource("folder", paths, np.arange(num_images, dtype=np.int32), ("a", "b"))


def batches(source, *, num_processes=0, num_batches=3, **settings):
    settings = {"batch_size": 9, "seed": 5, "crops": CROPS, **settings}
    stream = TrainLoader(source, **settings, num_processes=num_processes).iterate(2)
    try:
        return list(itertools.islice(stream, num_batches))
    finally:
        stream.close()


def workers():
    return [child for child in multiprocessing.active_children() if child.name == "decode"]


def test_batches_of_processes_are_those_of_threads(tmp_path):
    source = folder_of(tmp_path)
    found = batches(source, num_processes=2, with_labels=True)
    assert not workers()
    for batch, expected in zip(found, batches(source, with_labels=True), strict=True):
        assert batch.keys() == expected.keys() == {"image", "local", "label"}
        for name in batch:
            assert batch[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(batch[name], expected[name])


def test_images_held_in_memory_start_no_process():
    images = np.random.default_rng(0).integers(0, 256, (12, 30, 28, 1), dtype=np.uint8)
    for source in (ArraySource("array", images), Subset(ArraySource("a", images), np.arange(11))):
        train = TrainLoader(source, batch_size=4, seed=0, crops=CROPS, num_processes=2)
        stream = train.iterate(0)
        next(stream)
        assert not workers()
        stream.close()


def test_a_source_that_does_not_pickle_is_refused_in_one_line():
    class Local(Numbered):
        pass

    with pytest.raises(UserError, match="num_processes=0") as error:
        batches(Local(), num_processes=2, batch_size=2)
    assert "\n" not in str(error.value) and not workers()


@pytest.mark.extended
def test_an_image_that_cannot_be_decoded_is_replaced_as_threads_replace_it(tmp_path, capsys):
    source = folder_of(tmp_path)
    source.paths[4].write_bytes(b"no image")
    found = []
    for num_processes in (0, 2):
        made = batches(source, num_processes=num_processes)
        found.append((made, capsys.readouterr().err))
    chex.assert_trees_all_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] and str(source.paths[4]) in found[0][1]
    assert not workers()


@pytest.mark.extended
def test_other_errors_come_with_the_traceback_of_the_process():
    with pytest.raises(RuntimeError, match="(?s)in image.*OddError: 1 and 2"):
        batches(Faulty(), num_processes=1, batch_size=2)


@pytest.mark.extended
def test_a_worker_that_dies_ends_the_stream_in_one_line():
    with pytest.raises(UserError, match=r"worker process \d+ was ended by SIGKILL") as error:
        batches(Deadly(), num_processes=2, batch_size=8)
    message = str(error.value)
    assert "\n" not in message and "--config.data.num_processes (now 2)" in message
    for _ in range(300):  # a busy machine takes its time to end the other one
        if workers():
            time.sleep(0.1)
    assert not workers()


@pytest.mark.extended
def test_interrupts_and_requests_to_end_do_not_reach_the_workers(tmp_path):
    train = TrainLoader(folder_of(tmp_path), batch_size=8, seed=0, num_processes=2, crops=CROPS)
    stream = train.iterate(0)
    next(stream)
    before = workers()
    for worker in before:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    for _ in range(20):
        next(stream)
    assert len(before) == 2 and set(workers()) == set(before)
    stream.close()
    assert not workers()


SCRIPT = """
import multiprocessing, sys

if __name__ == "__main__":
    from gsg_jax.data.crops import CropRecipe
    from gsg_jax.data.loader import TrainLoader
    from tests.data.pickled import Slow
    loader = TrainLoader(Slow(sys.argv[1] == "go on"), batch_size=50, seed=0,
                         crops=CropRecipe(2, 4), num_processes=2)
    stream = loader.iterate(0)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while sys.argv[1] == "go on":
        next(stream)
"""


@contextlib.contextmanager
def started(folder, what):
    """Yields the script, which has its first batch, and the ids of its workers."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    program = subprocess.Popen(
        [sys.executable, "-W", "error", script, what],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pids = []
    try:
        pids += [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 2, program.communicate(timeout=60)
        yield program, pids
    finally:
        program.kill()
        program.communicate(timeout=10)
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)


def wait_for_end(pids):
    end = time.monotonic() + 10
    while any(map(is_running, pids)):
        assert time.monotonic() < end, "a worker stays"
        time.sleep(0.05)


@pytest.mark.extended
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_program_that_is_killed_by_10_seconds(tmp_path):
    with started(tmp_path, "go on") as (program, pids):
        time.sleep(1)  # by now each is at an image that takes a minute
        program.kill()
        wait_for_end(pids)


@pytest.mark.extended
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_script_that_stops_in_the_middle_exits_with_its_workers(tmp_path):
    with started(tmp_path, "stop") as (program, pids):
        _, error = program.communicate(timeout=60)
        assert program.returncode == 0 and error == ""
        wait_for_end(pids)


@pytest.mark.extended
@pytest.mark.parametrize("defines_source", [False, True])
def test_a_script_is_run_once_unless_it_defines_the_source(tmp_path, defines_source):
    folder_of(tmp_path)
    guard = "if __name__ == '__main__':" if defines_source else "if True:"
    (tmp_path / "mine.py").write_text(f"""
import pathlib
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.folder import FolderSource
from gsg_jax.data.loader import TrainLoader

class Mine(FolderSource):
    pass

print("run")
{guard}
    paths = tuple(sorted(pathlib.Path({str(tmp_path)!r}).glob("*.png")))
    source = {"Mine" if defines_source else "FolderSource"}("folder", paths)
    loader = TrainLoader(source, batch_size=4, seed=0, crops=CropRecipe(2, 24), num_processes=2)
    stream = loader.iterate(0)
    print(next(stream)["image"].shape, __file__, flush=True)
    stream.close()
""")
    done = subprocess.run(
        [sys.executable, "mine.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = sorted(done.stdout.splitlines())
    num_runs = 3 if defines_source else 1
    assert lines == [f"(4, 2, 24, 24, 3) {tmp_path / 'mine.py'}", *["run"] * num_runs]
