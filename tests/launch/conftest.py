"""Stand-ins for the commands of clouds and clusters, which record their calls."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Commands that no script may really call in a test, nor a dry run at all.
COMMANDS = (
    *("gcloud", "xpk", "docker", "sky", "sbatch", "srun", "scontrol", "git", "make", "pip"),
    *("sudo", "curl", "gcsfuse", "mountpoint", "lsb_release", "python"),
)

STAND_IN = """#!{python} -IS
import json, os, pathlib, shutil, sys
folder = pathlib.Path({folder!r})
argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
calls = folder / "calls.jsonl"
before = [json.loads(line) for line in calls.open()] if calls.exists() else []
with calls.open("a") as file:
    file.write(json.dumps(argv) + "\\n")
for argument in argv:
    if argument.endswith(".tar.gz") and os.path.isfile(argument):
        shutil.copy(argument, folder / "copied.tar.gz")
for pattern, answers in json.loads((folder / "answers.json").read_text()):
    if pattern in " ".join(argv):
        nth = sum(pattern in " ".join(earlier) for earlier in before)
        out, status = answers[min(nth, len(answers) - 1)]
        sys.stdout.write(out)
        sys.exit(status)
"""


@dataclasses.dataclass
class Desk:
    """A copy of launch/ with stand-ins first on the PATH, and the record of their calls."""

    folder: pathlib.Path

    @property
    def root(self) -> pathlib.Path:
        return self.folder / "gsg_jax"

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def answers(self, answers: dict[str, list[str | tuple[str, int]]]) -> None:
        """Sets the answers: the nth call that contains a text gets the nth answer, or the last.

        Args:
          answers: by text, the standard output, or that and the exit status.
        """
        full = [
            (text, [given if isinstance(given, tuple) else (given, 0) for given in listed])
            for text, listed in answers.items()
        ]
        (self.folder / "answers.json").write_text(json.dumps(full))

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.folder), "LC_ALL": "C"} | variables

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.root / "launch" / script), *arguments],
            env=self.environment(**variables),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, script: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Runs a script of launch/ with these variables only."""
        process = self.start(script, *arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def remote(self, line: str, folder: str = ".", **variables: str) -> tuple[int, str, str]:
        """Runs a line of shell in the home folder or one below it, as ssh would."""
        done = subprocess.run(
            ["bash", "-c", line],
            env=self.environment(**variables),
            cwd=self.folder / folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    shutil.copytree(ROOT / "launch", desk.root / "launch")
    source = STAND_IN.format(python=sys.executable, folder=str(tmp_path))
    places = [tmp_path / "bin" / name for name in COMMANDS if name not in ("pip", "python")]
    places += [desk.root / ".venv" / "bin" / name for name in ("pip", "python")]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(source)
        place.chmod(0o755)
    desk.answers({})
    return desk
