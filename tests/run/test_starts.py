"""A run's starts: by which command, when, of which commit, on which machine."""

import datetime
import shlex
import subprocess
import sys

import pytest

import gsg_jax
from gsg_jax.run import starts


def test_every_start_adds_a_line(tmp_path):
    assert starts.read_starts(tmp_path) == []
    before = datetime.datetime.now().astimezone().replace(microsecond=0)
    for step in (0, 7):
        starts.write_start(tmp_path, step)
    first, second = starts.read_starts(tmp_path)
    assert (first["step"], second["step"]) == (0, 7)
    assert datetime.datetime.fromisoformat(first["date"]) >= before
    assert first["version"] == gsg_jax.__version__
    assert "CPU cores" in first["machine"] and "jax" in first["machine"]


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/x/bin/gsg-jax", "a b"], ["python3", "/x/bin/gsg-jax", "a b"], ["gsg-jax", "a b"]),
        (
            ["/x/gsg_jax/main.py", "--config=c.py"],
            ["/x/bin/python3", "-m", "gsg_jax.main", "--config=c.py"],
            ["python", "-m", "gsg_jax.main", "--config=c.py"],
        ),
    ],
)
def test_the_command_is_what_a_shell_takes(monkeypatch, argv, orig_argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert shlex.split(starts.command()) == expected


def test_the_commit_is_the_packages_own(tmp_path, monkeypatch):
    package = tmp_path / "repository" / "gsg_jax"
    package.mkdir(parents=True)
    monkeypatch.setattr(starts, "PACKAGE", package)

    def git(*args):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ("git", "-C", str(package.parent), *who, *args)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (package / "__init__.py").write_text("")
    assert starts.commit() == ""
    git("init", "-q")
    assert starts.commit() == ""  # no commit yet
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert starts.commit() and head.startswith(starts.commit())
    (package / "__init__.py").write_text("changed")
    assert starts.commit().endswith("-dirty")
    # Installed inside somebody's repository: that commit is not the package's.
    installed = package.parent / "site-packages" / "gsg_jax"
    monkeypatch.setattr(starts, "PACKAGE", installed)
    assert starts.commit() == ""
