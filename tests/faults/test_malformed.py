"""What is malformed ends in one clear line, or is passed over, and no file is lost.

Configs, image files and files of a workdir, by hand and from seeds. Each is judged alike: exit
status 0, 1 or 2, never a traceback, one last line "error: ..." after a failure, and every file that
was there is still there as it was.
"""

import io
import json
import os
import pathlib
import random
import shutil
import traceback
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gsg_jax.config.load import flat
from gsg_jax.train import loop
from tests.faults.conftest import FULL
from tests.run.test_checkpoint import halve
from tests.runs import call, hashes, tiny
from tests.small import load

pytestmark = pytest.mark.extended
# What a run that succeeds may write again.
REWRITTEN = ("config.json", "metrics.jsonl", "throughput.jsonl", "figures.json")
STOPPED = {"step": 0, "num_steps": 1}  # the figures of a run that has done nothing


def fault_of(flags, *folders, may_succeed=True):
    """What is wrong with how a command line ends, or None; folders hold what must stay."""
    before = [hashes(folder) for folder in folders]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # what it says of EXIF and the like
            status, out, err = call(*flags)
    except (Exception, SystemExit):
        return f"escaped: {''.join(traceback.format_exc(limit=-3, chain=False))}"
    last = err.splitlines()[-1] if err.strip() else ""
    if status not in (0, 1, 2) or "Traceback" in err:
        return f"status {status}: {err}"
    if status and (out or not last.startswith("error: ") or len(last) < 20):
        return f"no clear last line: {err!r}, {out!r}"
    if status == 0 and not may_succeed:
        return f"accepted: {err}"
    for old, new in zip(before, map(hashes, folders), strict=True):
        for name, digest in old.items():
            if status == 0 and name.startswith(REWRITTEN) and name in new:
                continue
            is_kept_apart = digest in [new[other] for other in new if other.startswith("damaged/")]
            if new.get(name) != digest and not (status == 0 and is_kept_apart):
                return f"{name} is {'changed' if name in new else 'lost'}: {err}"
    return None


def judge(kind, tries, tally, attempt, number=9):
    """Makes every try in the full form, some from everywhere in the short one."""
    tries, survived = list(tries), 0
    tries = tries if FULL else tries[:: max(1, len(tries) // number)]
    for name, what in tries:
        fault = attempt(name, what)
        survived += fault is None
        if fault:
            print(f"--- {kind}: {name}\n{fault}")
    tally(kind, len(tries), survived)


WRONG = {
    bool: ("maybe", "2", "''", "None"),
    int: ("nan", "1.5", "x", "-7", "9" * 30, "1e3", "''", "None", "(1,)"),
    float: ("nan", "inf", "x", "-1e9", "1e400", "(1,2)", "None", "1,5", "''"),
    tuple: ("(", "x", "(nan,nan)", "((1,2),3)", "None", "('a','b')", "(1e999,1)", "1;2"),
}
FLAGS = (
    *("views.num_local=65", "optim.num_microbatches=7", "views.mean=(0.1,0.2)"),
    *(
        "data.batch_size=17",
        "data.train_split=train[:10%]",
        "data.dir=",
        "data.dir=/dev/null",
    ),
    *("data.dir=~nobody-by-this-name/x", "data.dir=/" + "x" * 5000, "data.name=nonsense"),
    *("data.name=../../etc", "run=3", "=1", "job=knn", "model.backbone=a\nb", "run.seed"),
)
WORDS = (
    *("--noconfig.run.seed", "--wrokdir=x", "train", "--config=configs/byol.py"),
    *("--workdir=/dev/null", "--workdir=/dev/null/below", "--workdir=/proc/nothing"),
    *("--workdir=~nobody-by-this-name/x", "--workdir=/tmp/" + "x" * 300, "--workdir=/proc/a\nb"),
)
CONFIG_FILES = (
    *("", "{]", "\0", "raise ValueError('two\\nlines')", "import sys; sys.exit(5)"),
    *("import no_such_module", "get_config = 3", "def get_config(): pass"),
    *("def get_config():\n    return get_config()", "def get_config(a, b): return None"),
    "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()",
)
CONFIG_LINES = (
    *("config.job = []", "config.model = 3", "del config.optim", "del config.optim['momentum']"),
    *("config.model.width = '16'", "config.model.width = 16.5", "config.views.crop_area = 'all'"),
    *("config.method.name = 7", "config.data.name = 7", "config.data.train_split = None"),
)


CONFIG_FILE = """from gsg_jax.config.recipes import pretraining
def get_config(recipe='default'):
    config = pretraining(recipe)
    config.method.name = 'simsiam'
    with config.ignore_type():
        {}
    return config
"""


def config_tries():
    rng = random.Random(0)
    leaves = flat(load("byol_gsg", "folder"))
    for key in rng.sample([key for key in leaves if not isinstance(leaves[key], str)], 40):
        value = rng.choice(WRONG[type(leaves[key])])
        yield f"{key}={value}", [f"--config.{key}={value}"]
    for flag in FLAGS:
        yield flag, [f"--config.{flag}"]
    for word in WORDS:
        yield word, [word]
    for text in CONFIG_FILES:
        yield f"file: {text}", text
    for line in CONFIG_LINES:
        yield f"file: {line}", CONFIG_FILE.format(line)


def test_malformed_configs(images, tmp_path, tally, monkeypatch):
    workdir = tmp_path / "run"
    # What is accepted need not train to count as accepted.
    monkeypatch.setattr(loop, "Pretraining", lambda *_: SimpleNamespace(run=lambda: STOPPED))

    def attempt(name, what):
        flags = tiny("byol", images, workdir)
        if isinstance(what, str):
            (tmp_path / "own.py").write_text(what)
            flags, what = [f"--config={tmp_path / 'own.py'}", f"--workdir={workdir}"], []
        elif what[0].startswith("--workdir"):
            flags = [flag for flag in flags if not flag.startswith("--workdir")]
        fault = fault_of([*flags, *what], images, may_succeed=False)
        if fault is None and workdir.exists():
            return "something was written before the error was found"
        shutil.rmtree(workdir, ignore_errors=True)
        return fault

    judge("malformed config", config_tries(), tally, attempt, 30)


def encoded(kind, mode="RGB", size=(14, 14)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def damaged_images():
    """Good files of each format, cut, overwritten or stirred at places drawn from a seed."""
    rng = random.Random(1)
    for n in range(20):
        kind, how = (
            rng.choice(("JPEG", "PNG", "WEBP", "GIF")),
            rng.choice(("cut", "zeros", "noise")),
        )
        data = bytearray(encoded(kind))
        place = rng.randrange(len(data))
        if how == "cut":
            data = data[:place]
        elif how == "zeros":
            data[place:] = bytes(len(data) - place)
        else:
            data[place : place + 20] = rng.randbytes(20)
        yield f"{kind} {how} {n}", bytes(data)


def image_tries():
    files = {
        "empty": b"",
        "random bytes": random.Random(2).randbytes(5000),
        "text": b"this is no image\n" * 9,
        "a JPEG's first bytes": b"\xff\xd8\xff\xe0",
        "CMYK": encoded("JPEG", "CMYK"),
        "alpha": encoded("PNG", "RGBA"),
        "one pixel": encoded("PNG", size=(1, 1)),
        "one row": encoded("PNG", size=(2000, 1)),
    }
    for name, data in [*files.items(), *damaged_images()]:
        yield name, lambda path, data=data: path.write_bytes(data)
    yield "a folder", pathlib.Path.mkdir
    yield "a pipe", os.mkfifo
    for target in ("odd.png", "nothing", ".", "/dev/zero"):
        yield f"a link to {target}", lambda path, target=target: path.symlink_to(target)
    for raw in (b"\xff\xfe.png", b"a\nb.png", b"\x1b[31m.png", b"[red]x.png", b".png"):
        yield (
            f"named {raw}",
            lambda path, raw=raw: (path.parent / os.fsdecode(raw)).write_bytes(encoded("PNG")),
        )


def test_malformed_images(tmp_path, tally):
    """Each alone and beside good ones; too large a batch ends the run once all are read."""

    def attempt(name, make):
        for number, num_good in enumerate((0, 3)):
            folder = tmp_path / f"{name} {number}".replace("/", "-")
            folder.mkdir()
            for n in range(num_good):
                (folder / f"good{n}.png").write_bytes(encoded("PNG"))
            make(folder / "odd.png")
            flags = tiny("simsiam", folder, tmp_path / "run", "--config.data.batch_size=4096")
            if fault := fault_of(flags, folder, may_succeed=False):
                return fault
            if (tmp_path / "run").exists():
                return "something was written"
        return None

    judge("malformed image", image_tries(), tally, attempt)


def changed(**changes):
    """Changes the first object of a file; None drops a figure."""

    def damage(path):
        first, *rest = path.read_text().splitlines()
        record = {k: v for k, v in (json.loads(first) | changes).items() if v is not None}
        path.write_text("\n".join([json.dumps(record), *rest]) + "\n")

    return damage


def replaced_by_folder(path):
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("not a run's")


def replaced_by_file(path):
    shutil.rmtree(path)
    path.write_text("not a run's")


def workdir_tries():
    contents = (b"", bytes(300), b"\xff\xfe\x00{\n", b"[]\n", b"3\n", b"[" * 100_000 + b"\n")
    for name in ("config.json", "metrics.jsonl", "throughput.jsonl", "baselines.json"):
        for content in contents:
            yield f"{name}: {content[:9]}", (name, lambda path, c=content: path.write_bytes(c))
        yield f"{name}: half", (name, halve)
        yield f"{name}: a folder", (name, replaced_by_folder)
        yield f"{name}: gone", (name, pathlib.Path.unlink)
    for name, changes in (
        ("metrics.jsonl", {"step": "1"}),
        ("metrics.jsonl", {"step": 10**9}),
        ("metrics.jsonl", {"loss": "low"}),
        ("metrics.jsonl", {"embedding_rank": []}),
        ("throughput.jsonl", {"train_seconds": None, "interval_seconds": None}),
        ("throughput.jsonl", {"views_per_second": "high"}),
        ("baselines.json", {"knn_top1_untrained": "high"}),
        ("baselines.json", {"job": "mine"}),
    ):
        yield f"{name}: {changes}", (name, changed(**changes))
    for name in ("checkpoints", "tensorboard"):
        yield f"{name}: a file", (name, replaced_by_file)
        yield f"{name}: gone", (name, shutil.rmtree)
    yield "checkpoints: a folder of nonsense", ("checkpoints", lambda p: (p / "nonsense").mkdir())
    yield "checkpoints: a file beside", ("checkpoints", lambda p: (p / "3").write_text("mine"))
    for name in ("1", "7", "-7", "007", "2147483648", "3000000000"):
        yield (
            f"checkpoints: 2 copied as {name}",
            ("checkpoints", lambda p, n=name: shutil.copytree(p / "2", p / n)),
        )
    for name in ("metrics.jsonl", "throughput.jsonl"):
        yield f"{name}: a doubled step", (name, lambda p: p.write_text(2 * p.read_text()))
        yield f"{name}: a negative step", (name, changed(step=-1))
        yield (
            f"{name}: a missing step",
            (name, lambda p: p.write_text(p.read_text().partition("\n")[2])),
        )
    yield "checkpoints: an empty step", ("checkpoints", lambda p: (p / "99").mkdir())


def test_malformed_files_of_a_workdir(images, tmp_path, tally):
    more = ["--config.run.num_steps=2", "--config.run.log_every_steps=1"]
    assert call(*tiny("simsiam", images, tmp_path / "whole", *more))[0] == 0

    def attempt(name, what):
        file, damage = what
        workdir = tmp_path / "".join(c if c.isalnum() else "-" for c in name)[:100]
        shutil.copytree(tmp_path / "whole", workdir)
        damage(workdir / file)
        return fault_of(tiny("simsiam", images, workdir, *more), workdir, images)

    judge("malformed file of a workdir", workdir_tries(), tally, attempt)
