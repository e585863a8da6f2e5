"""One process writes into a folder, the others are told who does; no lock outlives its process."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys

import pytest

from gsg_jax.console import UserError
from gsg_jax.run import lock
from tests.runs import ROOT

HOLD = """import pathlib, sys
from gsg_jax.run.lock import writing
with writing(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process of its own that holds the folder until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def refusal(folder):
    with pytest.raises(UserError) as error, lock.writing(folder):
        pass
    return str(error.value)


def test_a_second_writer_is_told_who_holds_the_folder_until_that_process_ends(tmp_path, holder):
    said = refusal(tmp_path)
    who = rf"{tmp_path} is written by process {holder.pid} on {os.uname().nodename} since 2\d{{3}}-"
    assert re.match(who, said) and said.endswith("stop it, or give another --workdir")
    assert refusal(tmp_path) == said, "a refused process leaves the holder's name as it was"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.writing(tmp_path):
        assert f"process {os.getpid()} on " in refusal(tmp_path)
    assert (tmp_path / lock.LOCK).read_bytes() == b""
    with lock.writing(tmp_path):
        pass


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, text):
    with lock.writing(tmp_path):
        (tmp_path / lock.LOCK).write_bytes(text)
        assert refusal(tmp_path).startswith(f"{tmp_path} is written by another process: ")


@pytest.mark.parametrize("number", lock._NO_LOCKS)
def test_a_file_system_without_locks_is_warned_of_and_written(
    tmp_path, monkeypatch, capsys, number
):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):  # nothing is left behind that would stop the next one
        with lock.writing(tmp_path):
            pass
        assert re.fullmatch("warning: .* cannot be locked .*\n", capsys.readouterr().err)


def test_an_error_of_the_disk_is_no_lack_of_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert refusal(tmp_path).startswith(f"--workdir={tmp_path} cannot be written (Input/output")


def test_only_the_host_that_writes_holds_the_folder_and_the_others_must_see_it(
    tmp_path, monkeypatch
):
    with lock.writing(tmp_path):
        monkeypatch.setattr(lock, "is_writer", lambda: False)
        with lock.writing(tmp_path):
            pass
    monkeypatch.setattr(lock, "APPEARS_SECONDS", 0)
    said = refusal(tmp_path / "elsewhere")
    assert "is not the folder that host 0 has made" in said and "all hosts share" in said
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_whose_file_was_removed_is_taken_anew_unless_another_process_has_it(tmp_path):
    path = tmp_path / lock.LOCK
    with lock.writing(tmp_path) as keep:
        path.unlink()
        keep()
        with path.open("a") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert f'"pid": {os.getpid()}' in path.read_text()
        path.unlink()
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(UserError, match=f"{tmp_path} is written by another process"):
                keep()
