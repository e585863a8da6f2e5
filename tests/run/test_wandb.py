"""wandb gets the figures that the files have, once each, and nothing that it does costs a run."""

import contextlib
import json
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import time

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from gsg_jax.run import wandb as wandb_log
from gsg_jax.run.metrics import MetricsWriter, read_lines
from gsg_jax.run.wandb import open_wandb
from tests.runs import call, figures, last_step, start, tiny, wait_until, write_images
from tests.small import small_config

MINE = "--config.run.wandb_project=mine"
CLOCK = {"views_per_second": 10.0, "interval_seconds": 0.5, "train_seconds": 1.5}


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Nothing is sent, and wandb's process ends with these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        yield
        wandb.teardown()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run without wandb: its workdir, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished")
    status, out, err = call(*tiny("simsiam_gsg", images, workdir))
    assert status == 0, err
    return workdir, out, err


def handed_over(workdir):
    """The steps in each of wandb's files, by the order in which they were written."""
    paths = sorted(workdir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime)
    return [[history(r) for r in records(path) if r.HasField("history")] for path in paths]


def records(path):
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a head of 7."""
    data, at, whole = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at < len(data):
        if (left := 2**15 - at % 2**15) < 7:  # too short for another record's head
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def history(record):
    """The figures of a logged step, without those that wandb adds."""
    values = {
        item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
    }
    return {"step": values["_step"]} | {name: values[name] for name in values if name[0] != "_"}


def logged(workdir):
    """What the files of the run have of each step."""
    clock = {line["step"]: line for line in read_lines(workdir / "throughput.jsonl")}
    return [line | clock[line["step"]] for line in read_lines(workdir / "metrics.jsonl")]


def write(folder, first_step, steps, copy):
    writer = MetricsWriter(folder, first_step, copy)
    for step in steps:
        writer.write(step, {"epoch": step / 3, "loss": -1 / 3**step}, CLOCK)
    writer.close()


def project(name="mine"):
    config = small_config("simsiam_gsg")
    config.run.wandb_project = name
    return config


def services_of(pid):
    """The processes that wandb has started for another."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            command = (path / "cmdline").read_bytes()
            if b"wandb-core" in command and f"--pid\0{pid}\0".encode() in command:
                found.append(path)
    return found


class StandIn:
    """A module and a run of wandb that has `step` as its next step, and fails at another."""

    disabled = False

    def __init__(self, step=0, fails_at=None):
        self.step, self.fails_at, self.got = step, fails_at, []

    def init(self, **given):
        self.given = given
        if self.step is None:
            raise ConnectionError("no route\nto anywhere")
        return self

    def Settings(self, **given):  # noqa: N802
        return given

    def log(self, figures, *, step, commit):
        assert commit
        if step == self.fails_at:
            raise ConnectionResetError("Connection lost")
        self.got.append(step)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def stand_in(monkeypatch):
    def give(**given):
        module = StandIn(**given)
        monkeypatch.setattr(wandb_log, "import_wandb", lambda: module)
        return module

    return give


@pytest.mark.slow
def test_a_run_hands_over_what_its_files_have_and_they_have_the_same_bytes(
    images, finished, tmp_path
):
    without, wanted, said = finished
    assert not list(without.glob("wandb*")) and "wandb" not in said
    status, out, err = call(*tiny("simsiam_gsg", images, tmp_path, MINE))
    assert status == 0 and out.count("\n") == 1, err
    (steps,) = handed_over(tmp_path)
    assert steps == logged(tmp_path) and [s["step"] for s in steps][-3:] == [8, 9, 10]
    assert figures(out)["state_digest"] == figures(wanted)["state_digest"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (without / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_asked_for_afterwards_wandb_gets_the_whole_run_and_the_run_stays_as_it_is(
    images, finished, tmp_path, stand_in
):
    of, wanted, _ = finished
    workdir = tmp_path / "run"
    shutil.copytree(of, workdir)
    flags = tiny("simsiam_gsg", images, workdir, MINE)
    status, out, _ = call(*flags)
    assert status == 0 and figures(out)["state_digest"] == figures(wanted)["state_digest"]
    assert handed_over(workdir) == [logged(of)]
    assert (workdir / "metrics.jsonl").read_bytes() == (of / "metrics.jsonl").read_bytes()

    stand_in(step=None)
    status, _, err = call(*flags)
    assert status == 0 and err.count("wandb") == 1
    assert "wandb has failed (no route): the run goes on without it" in err


def test_a_resumed_run_goes_on_in_the_same_one_and_no_step_is_there_twice(tmp_path):
    for first_step, steps in ((0, [1, 2, 3]), (2, [3, 4])):
        with open_wandb(project(), tmp_path, is_new=not first_step) as copy:
            write(tmp_path, first_step, steps, copy)
    names = [path.name for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")]
    assert len(names) == 2 and set(names) == {f"run-{(tmp_path / 'wandb_id').read_text()}.wandb"}
    first, second = handed_over(tmp_path)
    assert [s["step"] for s in first] == [1, 2, 3]
    assert [s["step"] for s in second] == [1, 2, 3, 4] and second == logged(tmp_path)


def test_what_wandb_has_already_is_not_handed_over_again_and_what_it_lacks_is(tmp_path, stand_in):
    write(tmp_path, 0, [1, 2, 3, 4], None)
    for has, lacks in ((5, [6]), (3, [3, 4, 6])):
        module = stand_in(step=has)
        with open_wandb(project(), tmp_path, is_new=False) as copy:
            write(tmp_path, 4, [6], copy)
        assert module.got == lacks and module.exit_code == 0
    assert module.given["id"] == (tmp_path / "wandb_id").read_text()
    assert module.given["resume"] == "allow" and module.given["project"] == "mine"


def test_a_failure_under_way_is_said_once_and_costs_no_line(tmp_path, stand_in, capsys):
    module = stand_in(fails_at=2)
    with open_wandb(project(), tmp_path, is_new=True) as copy:
        write(tmp_path, 0, [1, 2, 3], copy)
    assert module.got == [1]
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Connection lost" in said and "same command" in said


def test_a_new_run_that_wandb_refuses_ends_in_a_line(images, tmp_path, stand_in):
    stand_in(step=None)
    status, out, err = call(*tiny("simsiam_gsg", images, tmp_path, MINE))
    assert status == 1 and out == "" and err.count("\n") == 1
    assert "wandb cannot begin (no route)" in err and "WANDB_MODE=offline" in err
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_that_fails_is_no_finished_one_of_wandb(tmp_path, stand_in):
    module = stand_in()
    with pytest.raises(ZeroDivisionError), open_wandb(project(), tmp_path, is_new=True):
        _ = 1 / 0
    assert module.exit_code == 1


def test_without_the_package_there_is_one_line_before_anything_is_made(
    images, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, out, err = call(*tiny("simsiam_gsg", images, tmp_path / "run", MINE))
    assert status == 1 and out == "" and err.count("\n") == 1
    assert "pip install 'gsg_jax[wandb]'" in err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wandb_is_not_imported_unless_asked():
    code = "import sys, gsg_jax.train.loop; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_a_run_that_wandbs_own_variable_switches_off_has_no_steps_to_ask_for(tmp_path, stand_in):
    module = stand_in(step=10**9)
    module.disabled = True
    with open_wandb(project(), tmp_path, is_new=True) as copy:
        write(tmp_path, 0, [1], copy)
    assert module.got == [1]


@pytest.mark.slow
def test_offline_no_request_is_made_and_the_service_of_a_killed_run_ends(
    images, tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # that of this process
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WANDB_BASE_URL"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        run = start(*tiny("simsiam_gsg", images, tmp_path, MINE, "--config.run.num_steps=4000"))
        try:
            wait_until(lambda: last_step(tmp_path) >= 10, run)
            (service,) = services_of(run.pid)
            # What it prints is not taken for the job's last line.
            assert (service / "fd/1").readlink() == (service / "fd/2").readlink()
            assert (service / "fd/1").readlink() != pathlib.Path(f"/proc/{run.pid}/fd/1").readlink()
        finally:
            run.kill()
            run.communicate()
        deadline = time.monotonic() + 30
        while services_of(run.pid):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        proxy.settimeout(0.5)
        with pytest.raises(TimeoutError):
            proxy.accept()
