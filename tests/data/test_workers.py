"""Worker processes: the same batches as threads, clear errors, and none that stays behind."""

import contextlib
import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.data import handover
from gsg_jax.data.crops import CropRecipe
from gsg_jax.data.folder import FolderSource
from gsg_jax.data.loader import TrainLoader
from gsg_jax.data.open import ArraySource
from gsg_jax.data.reader import Reader
from gsg_jax.data.source import Subset
from gsg_jax.data.tfds import RecordSource
from gsg_jax.data.workers import Processes, Threads
from tests.data.pickled import Deadly, Records, Sleepy
from tests.runs import ROOT, start, tiny, write_images

CROPS = {"crops": CropRecipe(2, 24)}
CUT = CropRecipe(2, 4)


def encoded(i):
    """A photograph as PNG, its size another for each i."""
    pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 70 - i, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def folder_of(directory, num_images=12):
    paths = tuple(directory / f"{i:02}.png" for i in range(num_images))
    for i, path in enumerate(paths):
        path.write_bytes(encoded(i))
    return FolderSource("folder", paths, np.arange(num_images, dtype=np.int32), ("a", "b"))


def records_of(num_images=12):
    return RecordSource(
        "records",
        Records({"image": encoded(i), "label": i} for i in range(num_images)),
        image_shape=None,
        class_names=("a", "b"),
        channels=3,
    )


def array_of(num_images=12):
    images = np.random.default_rng(0).integers(0, 256, (num_images, 30, 28, 1), dtype=np.uint8)
    return ArraySource("array", images, np.arange(num_images, dtype=np.int32))


def batches(source, *, num_processes=0, num_batches=3, **settings):
    train = TrainLoader(
        source,
        **{"batch_size": 9, "seed": 5, "with_labels": True, **CROPS, **settings},
        num_processes=num_processes,
    )
    stream = train.iterate(2)
    try:
        return list(itertools.islice(stream, num_batches))
    finally:
        stream.close()


def workers():
    return [child for child in multiprocessing.active_children() if child.name == "decode"]


@pytest.mark.parametrize("kind", ["folder", "records", "array", "part"])
def test_batches_of_processes_are_those_of_threads(tmp_path, kind):
    make = {"folder": lambda: folder_of(tmp_path), "records": records_of, "array": array_of}
    source = Subset(array_of(), np.arange(11)) if kind == "part" else make[kind]()
    local = {"crops": CropRecipe(2, 24, num_local=3, local_size=10)}
    found = batches(source, num_processes=2, **local)
    assert not workers()
    for batch, expected in zip(found, batches(source, **local), strict=True):
        assert batch.keys() == expected.keys() == {"image", "local", "label"}
        for name in batch:
            assert batch[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(batch[name], expected[name])


def test_images_held_in_memory_and_left_whole_start_no_process():
    whole = {"crops": None}
    for source in (array_of(), Subset(array_of(), np.arange(11))):
        train = TrainLoader(source, batch_size=4, seed=0, num_processes=2)
        stream = train.iterate(0)
        next(stream)
        assert not workers()
        stream.close()
        found = batches(source, num_processes=2, **whole)
        np.testing.assert_array_equal(found[0]["image"], batches(source, **whole)[0]["image"])


def test_an_image_that_cannot_be_decoded_is_told_as_threads_tell_it(tmp_path):
    source = folder_of(tmp_path)
    source.paths[4].write_bytes(b"no image")
    told = []
    for num_processes in (0, 2):
        with pytest.raises(UserError) as error:
            batches(source, num_processes=num_processes)
        told.append(str(error.value))
    assert told[0] == told[1] and str(source.paths[4]) in told[0]
    assert not workers()


class Odd:
    """Images of which reading one fails as `how` says."""

    name, labels, class_names, image_shape = "odd", None, (), None

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 8

    def image(self, i):
        if self.how == "a broken disk":
            raise OSError(5, "Input/output error", "cat.jpg")
        if self.how == "two arguments":
            raise OddError(1, 2)
        return np.zeros((0, 0, 3), np.uint8)


class OddError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("a broken disk", OSError, "Input/output error: 'cat.jpg'"),
        ("two arguments", RuntimeError, "OddError in a worker process: 1 and 2"),
    ],
)
def test_other_errors_come_through_with_where_they_arose(how, kind, message):
    with pytest.raises(kind, match=message) as error:
        batches(Odd(how), num_processes=1, batch_size=2, with_labels=False)
    if kind is OSError:
        assert error.value.filename == "cat.jpg"
        assert "in image" in "".join(error.value.__notes__)


def test_a_source_that_does_not_pickle_is_refused_in_one_line():
    class Local(Odd):
        pass

    with pytest.raises(UserError, match="num_processes=0") as error:
        batches(Local(""), num_processes=2, batch_size=2, with_labels=False)
    assert "\n" not in str(error.value) and not workers()


def test_no_room_for_the_source_is_told_with_the_folder(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handover.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match="No space left on device.*TMPDIR"):
        batches(array_of(), num_processes=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_told_and_replaced_and_the_batches_stay_the_same(number, capsys):
    # Large answers: most of a worker's time goes into sending them.
    settings = {"batch_size": 8, "seed": 0, "crops": CropRecipe(2, 600)}
    expected = TrainLoader(records_of(), **settings).iterate(0)
    found = TrainLoader(records_of(), **settings, num_processes=2).iterate(0)
    killed = []
    np.testing.assert_array_equal(next(found)["image"], next(expected)["image"])
    for _ in range(3):
        killed.append(workers()[0].pid)
        os.kill(killed[-1], number)
        for _ in range(4):
            np.testing.assert_array_equal(next(found)["image"], next(expected)["image"])
    assert len(set(killed)) == 3 and len(workers()) == 2
    found.close()
    expected.close()
    assert not workers()
    told = capsys.readouterr().err.splitlines()
    how = "was killed, as the system does" if number == signal.SIGKILL else "was ended by SIGSEGV"
    assert [line.startswith("warning: worker process ") for line in told] == [True] * 3
    for pid, line in zip(killed, told, strict=True):
        assert f"process {pid} {how}" in line and "another one takes its place" in line


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_image_that_kills_its_reader_is_told_by_name_at_the_third_death(
    tmp_path, num_processes, capsys
):
    settings = {"num_processes": num_processes, "batch_size": 8, "with_labels": False}
    with pytest.raises(UserError) as error:
        batches(Deadly(tmp_path, 100), **settings)
    message, image = str(error.value), str(tmp_path / "5.png")
    assert "\n" not in message and f"memory runs out at {image}, as 2 before it" in message
    assert f"--config.data.num_processes (now {num_processes})" in message
    told = capsys.readouterr().err.splitlines()  # also of the next batch, which is made ahead
    assert all(line.endswith(f"at {image}; another one takes its place") for line in told)
    assert 2 <= len(told) <= 2 * num_processes and not workers()


def test_a_reader_that_dies_twice_at_an_image_changes_nothing(tmp_path):
    (tmp_path / "killed").mkdir()
    settings = {"batch_size": 8, "with_labels": False, "num_batches": 2}
    found = batches(Deadly(tmp_path / "killed", 2), num_processes=2, **settings)
    assert len(list((tmp_path / "killed").iterdir())) == 2
    for batch, expected in zip(found, batches(Deadly(tmp_path, 0), **settings), strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])


def test_what_a_process_is_reading_and_for_how_long_can_be_asked(tmp_path):
    made = Processes(Reader(Sleepy(tmp_path, 0), 0, CUT), 2, "number {}".format)
    assert made.busy() == []
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: list(made.read([(0, i, i) for i in range(8)])))
        wait_until(lambda: [one.image for one in made.busy()] == ["number 5"])
        first = made.busy()[0]
        time.sleep(0.3)
        second = made.busy()[0]
        assert first.who == second.who in [f"worker process {w.pid}" for w in workers()]
        assert 0.3 <= second.seconds - first.seconds < 5
        made.close()
        with pytest.raises((UserError, CancelledError)):
            reading.result(timeout=60)
    assert not workers()


def test_what_a_thread_is_reading_can_be_asked():
    started, go_on = threading.Event(), threading.Event()

    def read(step, place, i):
        started.set()
        assert go_on.wait(60)
        return {"image": np.array(i)}

    made = Threads(read, 1, "number {}".format)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: list(made.read([(0, 0, 7)])))
        assert started.wait(60)
        (one,) = made.busy()
        assert one.who.startswith("thread decode") and one.image == "number 7"
        go_on.set()
        reading.result(timeout=60)
        assert made.busy() == []
    made.close()


def test_an_image_is_called_by_its_file_or_its_number(tmp_path):
    assert Reader(folder_of(tmp_path), 0, CUT).image_name(3) == str(tmp_path / "03.png")
    assert Reader(records_of(), 0, CUT).image_name(3) == "image 3 of 'records'"


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_interrupts_and_requests_to_end_do_not_reach_the_workers():
    train = TrainLoader(records_of(), batch_size=8, seed=0, num_processes=2, **CROPS)
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


def test_threads_and_processes_answer_in_the_order_of_the_calls():
    for made in (Threads(place_of, 3), Processes(place_of, 2)):
        answers = made.read([(0, place, 0) for place in range(37)])
        assert [int(answer["image"]) for answer in answers] == list(range(37))
        assert list(made.read([])) == []
        made.close()


def place_of(step, place, i):
    return {"image": np.array(place)}


SCRIPT = """
import multiprocessing, sys, time
import numpy as np
from gsg_jax.console import UserError

class Slow:
    name, labels, class_names, image_shape, num_read = "slow", None, (), None, 0
    def __init__(self, gets_stuck):
        self.gets_stuck = gets_stuck
    def __len__(self):
        return 500
    def image(self, i):
        if "jax" in sys.modules:
            raise UserError("a worker has imported jax")
        self.num_read += 1
        time.sleep(60 if self.gets_stuck and self.num_read > 55 else 0.01)
        return np.zeros((9, 9, 3), np.uint8)

if __name__ == "__main__":
    from gsg_jax.data.crops import CropRecipe
    from gsg_jax.data.loader import TrainLoader
    loader = TrainLoader(Slow(sys.argv[1] == "go on"), batch_size=50, seed=0,
                         crops=CropRecipe(2, 4), num_processes=2, prefetch=2)
    stream = loader.iterate(0)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while sys.argv[1] == "go on":
        next(stream)
"""


@contextlib.contextmanager
def started(folder, what):
    """The script, which has its first batch, and the ids of its workers."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    program = subprocess.Popen(
        [sys.executable, "-W", "error", script, what],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pids = []
    with ended(program, pids):
        pids += [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 2, program.communicate(timeout=60)
        yield program, pids


@contextlib.contextmanager
def ended(program, pids):
    """Leaves nothing behind of a test that fails."""
    try:
        yield
    finally:
        program.kill()
        program.communicate(timeout=10)
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)


def wait_for_end(pids, seconds):
    end = time.monotonic() + seconds
    while any(map(is_running, pids)):
        assert time.monotonic() < end, "a worker stays"
        time.sleep(0.05)


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()


def is_running(pid):
    """Whether a process works still; one that nobody has asked for its status does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_program_that_is_killed(tmp_path):
    with started(tmp_path, "go on") as (program, pids):
        time.sleep(1)  # each is at an image that takes it a minute
        program.kill()
        wait_for_end(pids, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_script_that_stops_in_the_middle_exits_at_once_with_its_workers(tmp_path):
    with started(tmp_path, "stop") as (program, pids):
        _, told = program.communicate(timeout=30)
        assert program.returncode == 0 and told == ""
        wait_for_end(pids, 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_workers_of_a_run_load_no_jax_and_end_with_it(tmp_path):
    images = write_images(tmp_path / "images")
    flags = ["--config.data.num_processes=2", "--config.data.crop=host"]
    flags += ["--config.data.memory_limit_mb=0", "--config.run.num_steps=100000"]
    flags += ["--config.run.log_every_steps=1", "--config.eval.knn_every_epochs=0"]
    program, pids = start(*tiny("simsiam", images, tmp_path / "run", *flags)), []
    with ended(program, pids):
        lines = tmp_path / "run" / "metrics.jsonl"
        while not lines.exists() or len(lines.read_bytes().splitlines()) < 3:
            assert program.poll() is None, program.communicate()
            time.sleep(0.1)
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        pids += [int(pid) for pid in children if "spawn_main" in command_line(pid)]
        assert len(pids) == 2
        for pid in pids:
            loaded = Path(f"/proc/{pid}/maps").read_text()
            assert "numpy" in loaded and "jaxlib" not in loaded
        program.kill()
        wait_for_end(pids, 5)
