"""What is malformed ends in one clear line, or is passed over, and no file is lost.

The tries are made from seeds and by hand: configs and command lines, image files, and the files of
a workdir. Each is judged alike: exit status 0, 1 or 2, never a traceback, at the end of a failure
one line that begins with "error: ", no hang, and every file that was there still there as it was.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import traceback
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gsg_jax.config.keys import KEYS
from gsg_jax.config.load import flat, load_config
from gsg_jax.train import loop as train
from tests.faults.conftest import FULL
from tests.runs import ROOT, call, hashes, start, tiny, write_images

SECONDS = 120  # of a try; most take a hundredth of it
# What a run that succeeds may write anew.
REWRITTEN = ("config.json", "metrics.jsonl", "throughput.jsonl")

pytestmark = pytest.mark.slow


def some(tries, number=9):
    """All tries in the full form, some from everywhere in the short one."""
    tries = list(tries)
    assert len({name for name, _ in tries}) == len(tries)
    return tries if FULL else tries[:: max(1, len(tries) // number)]


class Late(BaseException):
    """A try has taken too long; no `except Exception` takes it for something else."""


@contextlib.contextmanager
def time_limit():
    def stop(*_):
        raise Late(f"no end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault_of(flags, *folders, may_succeed=True):
    """What is wrong with how a command line ends, or None; folders hold what must stay."""
    before = [hashes(folder) for folder in folders]
    try:
        with time_limit(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # what it says of EXIF and the like
            status, out, err = call(*flags)
    except (Exception, SystemExit, Late):
        return f"escaped: {''.join(traceback.format_exc(limit=-3, chain=False))}"
    return fault_in(status, out, err, before, [hashes(f) for f in folders], may_succeed)


def fault_in(status, out, err, before, after, may_succeed):
    last = err.splitlines()[-1] if err.strip() else ""
    if status not in (0, 1, 2):
        return f"status {status}: {err}"
    if "Traceback" in err:
        return f"a traceback: {err}"
    if status and (out or not last.startswith("error: ") or len(last) < 20):
        return f"no clear last line: {err!r}, {out!r}"
    if status == 0 and not may_succeed:
        return f"accepted: {err}"
    for old, new in zip(before, after, strict=True):
        for name, digest in old.items():
            if status == 0 and name.startswith(REWRITTEN) and name in new:
                continue
            is_kept_apart = digest in [new[other] for other in new if other.startswith("damaged/")]
            if new.get(name) != digest and not (status == 0 and is_kept_apart):
                return f"{name} is {'changed' if name in new else 'lost'}: {err}"
    return None


def judge(kind, tries, tally, attempt):
    """Makes every try; says which were not survived, and counts."""
    survived = 0
    for name, what in tries:
        fault = attempt(name, what)
        survived += fault is None
        if fault:
            print(f"--- {kind}: {name}\n{fault}")
    tally(kind, len(tries), survived)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("images"))


# --- Configs and command lines -------------------------------------------------------------------

WRONG = {
    bool: ("maybe", "2", "''", "None", "tru e", "-1", "nan"),
    int: ("nan", "1.5", "x", "-7", "9" * 30, "1e3", "inf", "0x10", "''", "None", "(1,)", "1 2"),
    float: ("nan", "inf", "-inf", "x", "-1e9", "1e400", "(1,2)", "None", "1,5", "''", "true", "1j"),
    str: ("nonsense", "None", "x" * 5000, "../..", "\u2028", "a b", "%s", "{}", "\U0001f408", "1"),
    tuple: (
        *("(", "x", "(nan,nan)", "((1,2),3)", "None", "{}", "__import__('os')", "(1" * 200),
        *("('a','b')", "(1e999,1)", "(-9e9,-9e9)", "(True,False)", "1;2", "(1,2,3,4,5,6,7,8,9)"),
    ),
}


def random_configs(number):
    """Overrides of one key each by a value that it cannot have, and misspelt keys."""
    rng = random.Random(0)
    leaves = flat(load_config(f"{ROOT}/configs/byol_gsg.py:folder"))
    keys = [
        key
        for key in leaves
        if not isinstance(leaves[key], str) or (key in KEYS and KEYS[key].limits)
    ]
    found = {}
    while len(found) < number:
        key = rng.choice(keys)
        if rng.random() < 0.2:
            place = rng.randrange(len(key))
            key = key[:place] + rng.choice(["", key[place] * 2, ".", "-", "Z"]) + key[place + 1 :]
            if key in leaves:
                continue
            value = "1"
        else:
            value = rng.choice(WRONG[type(leaves[key])])
        # Any number of numbers is right for these.
        if (
            key in KEYS
            and isinstance(KEYS[key].default, tuple)
            and not KEYS[key].length
            and value.startswith("(1,2,3")
        ):
            continue
        found[f"{key}={value[:40]}"] = [f"--config.{key}={value}"]
    return list(found.items())


def together(*pairs):
    return [f"--config.{pair}" for pair in pairs]


CONTRADICTIONS = [
    ("a queue smaller than the batch", together("method.queue_size=8")),
    ("a key of another method", together("method.temperature=0.1", "method.pairing=roll")),
    ("another method's name", together("method.name=moco_v2")),
    ("local views of GSG", together("views.num_local=2", "method.name=simsiam_gsg")),
    ("cutmix and a probe", together("views.cutmix_probability=1", "eval.online_linear=true")),
    ("microbatches that do not divide", together("optim.num_microbatches=7")),
    ("microbatches of one image", together("optim.num_microbatches=16")),
    ("mean without std", together("views.mean=(0.1,0.2)")),
    ("two channels", together("views.mean=(0.1,0.2)", "views.std=(0.1,0.2)")),
    ("groups that do not divide", together("model.norm=group", "model.norm_groups=3")),
    ("a ViT with GroupNorm", together("model.backbone=vit_micro", "model.norm=group")),
    ("patches that do not fit", together("model.backbone=vit_micro", "model.patch_size=5")),
    ("an area upside down", together("views.crop_area=(0.9,0.1)")),
    ("a sigma upside down", together("views.blur_sigma=(2,0.1)")),
    ("a batch beyond the images", together("data.batch_size=4096")),
    ("a batch that no device count divides", together("data.batch_size=17")),
    ("a split that folders lack", together("data.train_split=train[:10%]")),
    ("a test split that folders lack", together("data.test_split=tset")),
    ("no folder", together("data.dir=")),
    ("a folder that is a file", together("data.dir=/dev/null")),
    ("a folder of nobody", together("data.dir=~nobody-by-this-name/x")),
    ("a folder of a name too long", together("data.dir=/" + "x" * 5000)),
    ("a folder that holds no images", together("data.dir=/proc/sys/net")),
    ("a TFDS set that is not there", together("data.name=nonsense")),
    ("a TFDS name that is a path", together("data.name=../../etc")),
    ("a TFDS name that is empty", together("data.name=")),
    ("a TFDS split of nonsense", together("data.name=mnist", "data.train_split=tr[")),
    ("a key given twice", together("views.crop_area=(0.2,1)", "views.crop_area=(0.3,1)")),
    ("a group as a key", together("run=3")),
    ("nothing after the dot", together("=1")),
    ("the job", together("job=knn")),
    ("the recipe", together("recipe=imagenet")),
    ("a line break in a value", together("model.backbone=a\nb")),
    ("a negation of a number", ["--noconfig.run.seed"]),
    ("an unknown flag", ["--wrokdir=x"]),
    ("a word", ["train"]),
    ("a second config", ["--config=configs/byol.py"]),
    ("a key without its value", ["--config.run.seed"]),
    ("a workdir that is a file", ["--workdir=/dev/null"]),
    ("a workdir below a file", ["--workdir=/dev/null/below"]),
    ("a workdir that cannot be made", ["--workdir=/proc/nothing"]),
    ("a workdir of nobody", ["--workdir=~nobody-by-this-name/x"]),
    ("a workdir of a name too long", ["--workdir=/tmp/" + "x" * 300]),
    ("a workdir with a line break", ["--workdir=/proc/a\nb"]),
]

CONFIG_FILES = [
    ("empty", b""),
    ("no Python", b"{]"),
    ("no UTF-8", b"\xff\xfe\x00"),
    ("zero bytes", bytes(64)),
    ("raises", b"raise ValueError('two\\nlines')"),
    ("exits", b"import sys; sys.exit(5)"),
    ("exits later", b"def get_config(recipe=''):\n    raise SystemExit"),
    ("imports what is not there", b"import no_such_module"),
    ("recurses", b"def get_config():\n    return get_config()"),
    ("no function", b"get_config = 3"),
    ("returns nothing", b"def get_config(): pass"),
    ("returns a dict", b"def get_config(): return {'job': 'pretrain'}"),
    ("takes two", b"def get_config(a, b): return None"),
    ("no job", b"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()"),
    *(
        (
            name,
            b"from gsg_jax.config.recipes import pretraining\ndef get_config(recipe='default'):\n"
            b"    config = pretraining(recipe)\n    config.method.name = 'simsiam'\n"
            b"    with config.ignore_type():\n        " + line + b"\n    return config\n",
        )
        for name, line in (
            ("a job that is a list", b"config.job = []"),
            ("a group that is a number", b"config.model = 3"),
            ("a group that is gone", b"del config.optim"),
            ("a key that is gone", b"del config.optim['momentum']"),
            ("a width of text", b"config.model.width = '16'"),
            ("a width of nothing", b"config.model.width = None"),
            ("a width of a half", b"config.model.width = 16.5"),
            ("an area of text", b"config.views.crop_area = 'all'"),
            ("a flag of text", b"config.method.stop_gradient = 'no'"),
            ("a name of a number", b"config.method.name = 7"),
            ("a name of a list", b"config.model.backbone = ['resnet18']"),
            ("a folder of a number", b"config.data.update({'name': 'folder', 'dir': 7})"),
            ("a data set of a number", b"config.data.name = 7"),
            ("a split of nothing", b"config.data.train_split = None"),
            ("a seed of a half", b"config.run.seed = 0.5"),
            ("a number of steps of a half", b"config.run.num_steps = 1.5"),
        )
    ),
]


def test_malformed_configs(images, tmp_path, tally, monkeypatch):
    tries = [*random_configs(70), *CONTRADICTIONS, *((f"file: {n}", c) for n, c in CONFIG_FILES)]
    workdir = tmp_path / "run"
    # What is accepted need not train to be counted as that.
    monkeypatch.setattr(train, "Pretraining", lambda *_: SimpleNamespace(run=dict))

    def attempt(name, what):
        flags = tiny("moco_v2" if "queue" in name else "byol", images, workdir)
        if isinstance(what, bytes):
            (tmp_path / "own.py").write_bytes(what)
            flags = [f"--config={tmp_path / 'own.py'}", f"--workdir={workdir}"]
            what = []
        elif what[0].startswith("--workdir"):
            flags = [flag for flag in flags if not flag.startswith("--workdir")]
        fault = fault_of([*flags, *what], images, may_succeed=False)
        if fault is None and workdir.exists():
            return "something was written before the error was found"
        shutil.rmtree(workdir, ignore_errors=True)
        return fault

    judge("malformed config", some(tries), tally, attempt)


# --- Images --------------------------------------------------------------------------------------


def encoded(kind, mode="RGB", size=(14, 14), **options):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA" if mode == "RGBA" else None)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)
    elif mode != "RGBA":
        image = image.convert("RGB").convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_size(width, height):
    """A PNG whose header promises more than its few bytes hold."""

    def chunk(name, body):
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def damaged_files(number):
    """Good files of each format, cut, overwritten and stirred at places drawn from a seed."""
    rng = random.Random(1)
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
    whole = {kind: encoded(kind) for kind in kinds}
    for n in range(number):
        kind, how = rng.choice(kinds), rng.choice(("cut", "zeros", "noise", "bytes", "doubled"))
        data = bytearray(whole[kind])
        place = rng.randrange(len(data))
        if how == "cut":
            data = data[:place]
        elif how == "zeros":
            data[place:] = bytes(len(data) - place)
        elif how == "noise":
            data[place : place + 20] = rng.randbytes(20)
        elif how == "bytes":
            for _ in range(5):
                data[rng.randrange(len(data))] = rng.randrange(256)
        else:
            data = data[:place] + data
        yield f"{kind} {how} {n}", bytes(data)


BAD_FILES = [
    ("empty", b""),
    ("zero bytes", bytes(5000)),
    ("random bytes", random.Random(2).randbytes(5000)),
    ("text", b"this is no image\n" * 9),
    ("HTML", b"<!doctype html><title>404</title>"),
    ("a script", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    ("an SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    ("a JPEG's first bytes", b"\xff\xd8\xff\xe0"),
    ("a PNG's first bytes", b"\x89PNG\r\n\x1a\n"),
    ("a WebP's first bytes", b"RIFF\x00\x00\x00\x00WEBPVP8 "),
    ("a bomb of 4 gigapixels", png_of_size(65535, 65535)),
    ("a bomb in one row", png_of_size(2**31 - 1, 1)),
    ("a PNG of no pixels", png_of_size(0, 0)),
    ("a PNG with too few rows", png_of_size(60, 60)),
    ("a zip", b"PK\x03\x04" + bytes(100)),
]
ODD_FILES = [
    ("CMYK", encoded("JPEG", "CMYK")),
    ("16 bits", encoded("PNG", "I;16")),
    ("gray and alpha", encoded("PNG", "LA")),
    ("alpha", encoded("PNG", "RGBA")),
    ("palette", encoded("PNG", "P")),
    ("one bit", encoded("PNG", "1")),
    ("one pixel", encoded("PNG", size=(1, 1))),
    ("one row", encoded("PNG", size=(2000, 1))),
    ("one column", encoded("JPEG", size=(1, 2000))),
    ("a GIF", encoded("GIF")),
    ("a BMP", encoded("BMP")),
    ("malformed EXIF", encoded("JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(9))),
    ("gray JPEG", encoded("JPEG", "L")),
    ("lossless WebP", encoded("WEBP", lossless=True)),
]


def folder_with_image(path):
    path.mkdir()
    (path / "a.png").write_bytes(b"no image")


def link_to_itself(path):
    path.symlink_to(path.name)


def link_to_nothing(path):
    path.symlink_to("nothing")


def link_to_folder(path):
    path.symlink_to(".", target_is_directory=True)


def circle(path):
    path.with_name("other").symlink_to(path.name)
    path.symlink_to("other")


def unreadable(path):
    path.write_bytes(encoded("PNG"))
    path.chmod(0)


def endless(path):
    path.symlink_to("/dev/zero")


# What is no file, or has a name that is none.
NO_FILES = [
    ("a folder", pathlib.Path.mkdir),
    ("a folder with an image", folder_with_image),
    ("a pipe", os.mkfifo),
    ("a link to itself", link_to_itself),
    ("a link to nothing", link_to_nothing),
    ("a link to its folder", link_to_folder),
    ("a circle of links", circle),
    ("an unreadable file", unreadable),
    ("a device without an end", endless),
]
NAMES = [
    ("no UTF-8", b"\xff\xfe.png"),
    ("a line break", b"a\nb.png"),
    ("an escape", b"\x1b[31m.png"),
    ("a space", b" .png"),
    ("brackets", b"[red]x.png"),
    ("only an extension", b".png"),
    ("a long name", b"x" * 250 + b".png"),
]


def image_tries():
    for name, data in [*BAD_FILES, *ODD_FILES, *damaged_files(40)]:
        yield name, lambda path, data=data: path.write_bytes(data)
    yield from NO_FILES
    for name, raw in NAMES:
        for data, what in ((b"no image", "bad"), (encoded("PNG"), "good")):
            yield (
                f"{what}, named by {name}",
                lambda path, raw=raw, data=data: pathlib.Path(
                    os.fsdecode(os.path.join(os.fsencode(path.parent), raw))
                ).write_bytes(data),
            )


def test_malformed_images(tmp_path, tally):
    """Each alone and beside good ones; too large a batch ends the run once all are read."""

    def attempt(name, make):
        for number, num_good in enumerate((0, 3)):
            folder = tmp_path / f"{name} {number}".replace("/", "-")
            folder.mkdir()
            for n in range(num_good):
                (folder / f"good{n}.png").write_bytes(encoded("PNG"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                make(folder / "odd.png")
            flags = tiny("simsiam", folder, tmp_path / "run", "--config.data.batch_size=4096")
            fault = fault_of(flags, folder, may_succeed=False)
            if fault:
                return fault
            if (tmp_path / "run").exists():
                return "something was written"
        return None

    judge("malformed image", some(image_tries()), tally, attempt)


def test_a_run_reads_past_every_malformed_image_at_once(tmp_path, tally):
    folder = write_images(tmp_path / "images")
    made = [*image_tries()]
    for number, (_, make) in enumerate(made):
        (folder / "train" / "even" / f"{number}").mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(folder / "train" / "even" / f"{number}" / "odd.png")
    flags = tiny("simsiam", folder, tmp_path / "run", "--config.run.num_steps=1",
                 "--config.data.crop=host", "--config.eval.knn_every_epochs=0")  # fmt: skip
    before = hashes(folder)
    run = start(*flags)
    out, err = run.communicate(timeout=400)
    fault = fault_in(run.returncode, out, err, [before], [hashes(folder)], True)
    assert fault is None and run.returncode == 0, (fault, err)
    assert err.count("cannot be decoded and are skipped") == 1
    tally("a run over all malformed images", 1, 1)


# --- Files of a workdir --------------------------------------------------------------------------


def damage_of(text):
    """A file's content in place of what it was."""
    return lambda path: path.write_bytes(text)


def line_of(**changes):
    def change(path):
        lines = path.read_text().splitlines()
        first = json.loads(lines[0]) | changes
        first = {key: value for key, value in first.items() if value != "gone"}
        path.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")

    return change


def record_of(change):
    def damage(path):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def replaced_by_folder(path):
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("not a run's")


def replaced_by_link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


def folder_replaced_by_file(path):
    shutil.rmtree(path)
    path.write_text("not a run's")


def stirred(seed):
    def damage(path):
        rng, data = random.Random(seed), bytearray(path.read_bytes())
        for _ in range(4):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        path.write_bytes(data)

    return damage


ANY_FILE = [
    ("empty", damage_of(b"")),
    ("half", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
    ("zero bytes", damage_of(bytes(300))),
    ("no UTF-8", damage_of(b"\xff\xfe\x00{\n")),
    ("a list", damage_of(b"[]\n")),
    ("a number", damage_of(b"3\n")),
    ("null", damage_of(b"null\n")),
    ("a text", damage_of(b'"x"\n')),
    ("deep", damage_of(b"[" * 100_000 + b"\n")),
    ("a huge number", damage_of(b'{"step": 1' + b"0" * 5000 + b"}\n")),
    ("doubled", lambda path: path.write_bytes(path.read_bytes() * 2)),
    ("a folder", replaced_by_folder),
    ("a link to itself", replaced_by_link_to_itself),
]
RECORDS = [
    ("a group is gone", lambda record: record.pop("optim")),
    ("a group is a list", lambda record: record.update(model=[])),
    ("a group is null", lambda record: record.update(run=None)),
    ("the job is gone", lambda record: record.pop("job")),
    ("the recipe is a list", lambda record: record.update(recipe=[])),
    ("a number is text", lambda record: record["model"].update(width="4")),
    ("a seed is NaN", lambda record: record["run"].update(seed=float("nan"))),
    ("a key is new", lambda record: record["run"].update(tomorrow=1)),
    ("a key is a dict", lambda record: record["run"].update(seed={})),
]
LINES = [
    ("the step is gone", line_of(step="gone")),
    ("the step is text", line_of(step="1")),
    ("the step is null", line_of(step=None)),
    ("the step is a list", line_of(step=[])),
    ("the step is NaN", line_of(step=float("nan"))),
    ("the step is later", line_of(step=10**9)),
    ("the loss is gone", line_of(loss="gone")),
    ("the loss is text", line_of(loss="low")),
    ("the rank is text", line_of(embedding_rank="high")),
    ("the rank is null", line_of(embedding_rank=None)),
    ("a k-NN is text", line_of(knn_top1="high")),
]
CLOCK_LINES = [
    ("the seconds are gone", line_of(train_seconds="gone", interval_seconds="gone")),
    ("the seconds are text", line_of(train_seconds="long")),
    ("the seconds are null", line_of(train_seconds=None)),
    ("the speed is text", line_of(views_per_second="high")),
]
BASELINES = [
    ("no figures", damage_of(b"{}")),
    ("figures of text", damage_of(b'{"knn_top1_untrained": "high", "knn_top1_pixels": "x"}')),
    ("figures of null", damage_of(b'{"knn_top1_untrained": null}')),
    ("figures of others", damage_of(b'{"job": "mine", "step": -1}')),
]


def workdir_tries():
    for name in ("config.json", "metrics.jsonl", "throughput.jsonl", "baselines.json"):
        for how, damage in ANY_FILE:
            yield f"{name}: {how}", (name, damage)
        for seed in range(3):
            yield f"{name}: stirred {seed}", (name, stirred(seed))
    for how, change in RECORDS:
        yield f"config.json: {how}", ("config.json", record_of(change))
    for how, damage in LINES:
        yield f"metrics.jsonl: {how}", ("metrics.jsonl", damage)
    for how, damage in CLOCK_LINES:
        yield f"throughput.jsonl: {how}", ("throughput.jsonl", damage)
    for how, damage in BASELINES:
        yield f"baselines.json: {how}", ("baselines.json", damage)
    for name in ("checkpoints", "tensorboard"):
        yield f"{name}: a file", (name, folder_replaced_by_file)
        yield f"{name}: gone", (name, shutil.rmtree)
    yield "checkpoints: a folder of nonsense", ("checkpoints", lambda p: (p / "nonsense").mkdir())
    yield "checkpoints: a file beside", ("checkpoints", lambda p: (p / "3").write_text("mine"))
    yield "checkpoints: an empty step", ("checkpoints", lambda p: (p / "99").mkdir())
    yield "checkpoints: a negative step", ("checkpoints", lambda p: (p / "-1").mkdir())
    yield "config.json: gone", ("config.json", pathlib.Path.unlink)
    yield "metrics.jsonl: gone", ("metrics.jsonl", pathlib.Path.unlink)
    yield "baselines.json: gone", ("baselines.json", pathlib.Path.unlink)


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """The workdir of a run of two steps that has ended."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    flags = ["--config.run.num_steps=2", "--config.run.log_every_steps=1"]
    assert call(*tiny("simsiam", images, workdir, *flags))[0] == 0
    return workdir, flags


def test_malformed_files_of_a_workdir(images, finished, tmp_path, tally):
    reference, more = finished

    def attempt(name, what):
        file, damage = what
        workdir = tmp_path / "".join(c if c.isalnum() else "-" for c in name)
        shutil.copytree(reference, workdir)
        damage(workdir / file)
        return fault_of(tiny("simsiam", images, workdir, *more), workdir, images)

    judge("malformed file of a workdir", some(workdir_tries()), tally, attempt)


def test_the_full_form_has_two_hundred_tries():
    configs = len(CONTRADICTIONS) + len(CONFIG_FILES) + len(random_configs(70))
    assert configs + len(list(image_tries())) + len(list(workdir_tries())) >= 200
