"""The README and the tutorials: every command and every snippet in them runs, on small sizes.

A document's fenced blocks run in their order in one folder that looks like a clone: bash by bash,
Python by Python; a block with a title is saved under it. Programs that would install, fetch or
build are replaced by ones that check their arguments, and pretraining gets flags that make it tiny.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.runs import METHOD_CONFIGS, ROOT, TINY

pytestmark = pytest.mark.extended

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
# What a clone has that the commands name.
LINKED = ("configs", "examples", "launch", "notebooks", "gsg_jax", "Makefile", "pyproject.toml")
# The programs of a document that must not do what they are for.
STAND_INS = """
import os, pathlib, re, subprocess, sys, tomllib
ROOT, name, args = {root!r}, pathlib.Path(sys.argv[0]).name, sys.argv[1:]
sys.path.insert(0, ROOT)
if name == "pip":
    assert args[0] == "install", args
    extras = tomllib.loads(pathlib.Path(ROOT, "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"\\.\\[(.*?)\\]", " ".join(args)):
        assert set(extra.split(",")) <= set(extras["optional-dependencies"]), extra
elif name == "make":
    sys.exit(subprocess.call([{make!r}, "-n", "-C", ROOT, *args]))
elif name == "python3" and args[:2] == ["-m", "venv"]:
    os.makedirs(args[2] + "/bin", exist_ok=True)
    pathlib.Path(args[2], "bin", "activate").write_text("")
elif name == "curl":  # random weights under the names and in the shapes of torchvision's
    import torch
    from tests.interop import checkpoints
    shapes = checkpoints.resnet(blocks=(2, 2, 2, 2))
    weights = {{name: torch.from_numpy(x) for name, x in checkpoints.drawn(shapes).items()}}
    torch.save(weights, args[-1].rpartition("/")[2])
elif name == "gsg-jax":
    if args[0].partition(":")[0] in {pretraining!r}:
        given = {{flag.partition("=")[0] for flag in args}}
        args += [flag for flag in {tiny!r} if flag.partition("=")[0] not in given]
    os.execv(sys.executable, [sys.executable, "-m", "gsg_jax", *args])
else:
    raise SystemExit(f"no stand-in for {{name}} {{args}}")
"""


def blocks(name: str) -> list[tuple[str, str, str]]:
    """The fenced blocks of a document: language, title, text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return BLOCK.findall(text)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder like a clone, with photographs; its programs come first in PATH."""
    rng = np.random.default_rng(0)
    folder, home = tmp_path / "clone", tmp_path / "home"
    for path in (folder / "photos" / "cats", folder / "photos" / "dogs", home, tmp_path / "bin"):
        path.mkdir(parents=True)
    for n in range(40):
        pixels = rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / ("cats", "dogs")[n % 2] / f"{n:02}.jpg")
    for name in ("a.jpg", "b.png", "my.jpg"):
        Image.fromarray(pixels).save(folder / name)
    (home / "photos").symlink_to(folder / "photos")
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    script = f"#!{sys.executable}\n" + STAND_INS.format(
        root=str(ROOT),
        make=shutil.which("make"),
        pretraining=[*METHOD_CONFIGS, "own_method.py"],
        tiny=list(TINY),
    )
    for name in ("pip", "make", "python3", "curl", "gsg-jax"):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device
    return folder


def run(folder, language: str, title: str, text: str) -> str:
    """Runs a block, or saves it under its title; returns its standard output."""
    if title:
        (folder / title).write_text(text)
    if title or language not in ("bash", "python"):
        return ""
    program = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}[language]
    done = subprocess.run(
        [*program, "-c", text], cwd=folder, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def last_object(text: str) -> dict:
    """The JSON object in the last line of a text, or {}."""
    last = (text.strip().splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else {}


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/getting_started.md",
        "docs/tutorials/photographs.md",
        "docs/tutorials/own_method.md",
        "docs/tutorials/own_data.md",
        "docs/tutorials/tpu.md",
    ],
)
def test_every_block_of_a_document_runs(name, clone):
    found, exported, printed = blocks(name), "", ""
    assert any(language in ("bash", "python") for language, *_ in found)
    for language, title, text in found:
        if language == "text":  # what the block before it printed
            assert last_object(text).keys() == last_object(printed).keys() or "{" not in text
            continue
        if language == "bash":
            exported += "".join(re.findall(r"^export .*\n", text, re.MULTILINE))
        printed = run(clone, language, title, exported + text if language == "bash" else text)


@pytest.mark.parametrize("name", ["own_method", "own_dataset"])
def test_a_tutorials_file_is_the_one_in_examples(name):
    page = {"own_method": "own_method", "own_dataset": "own_data"}[name]
    saved = {title: text for _, title, text in blocks(f"docs/tutorials/{page}.md")}
    assert saved[f"{name}.py"] == (ROOT / "examples" / f"{name}.py").read_text()


def test_the_readme_has_its_parts_in_order_and_fits_in_130_lines():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    parts = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert parts == [
        *("Install", "One minute", "Three lines of Python", "How it compares"),
        *("Your own photographs", "Methods", "Results", "Links", "Citation", "Licence"),
    ]
    assert text.index("![") < text.index("## Install")
