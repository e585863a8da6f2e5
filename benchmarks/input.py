"""Times the host's input path, the bare decoder, PyTorch's input path, and the wait for images.

    python benchmarks/input.py [--images=256] [--size=224] [--views=2,4] [--rounds=5] [--dir=DIR]

Without --dir the images are JPEGs of 500 x 375 pixels, made for the run from smooth shapes and
noise. Each line is one JSON object. The first lines, one per number of views, hold the images per
second of the whole path (read, decode, crop, resize, stack to uint8 batches [B, V, S, S, 3]), also
per core and per CPU second; those of the bare decoder in one thread, and the share of it that the
whole path reaches; and those of PyTorch's path (torch_input.py: the same files, crops and sizes,
and as many worker processes as ours has threads). They run in turns, one at a time; figures are
medians. The next line holds the share of a run's time in which the device has done its step and
waits for the next images. A CPU waits little, but shares its cores with the decoder.

The last line holds our images per second over PyTorch's, by number of views. PyTorch and
torchvision come with `pip install -e '.[bench]'`. Compare only lines of the same run.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, resolve
from gsg_jax.data.crops import ASPECT, CropRecipe
from gsg_jax.data.decode import decode
from gsg_jax.data.folder import FolderSource, open_folder
from gsg_jax.data.loader import TrainLoader
from gsg_jax.devices.mesh import global_batch, make_mesh, replicated
from gsg_jax.train.build import build_experiment, build_loader, jit_step
from gsg_jax.train.state import init_state

AREA = (0.2, 1.0)
THREADS = len(os.sched_getaffinity(0))
AHEAD = 2 * THREADS  # batches made ahead by both sides: two per worker, PyTorch's default


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="JPEGs to make")
    parser.add_argument("--dir", default="", help="a folder of images to use instead")
    parser.add_argument("--size", type=int, default=224, help="pixels of a view")
    parser.add_argument("--views", default="2,4", help="views per image, comma-separated")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed chunks of each side")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of the device")
    parser.add_argument(
        "--method", default="simsiam", help="method of the step that waits for images"
    )
    parser.add_argument("--recipe", default="imagenet", help="recipe of that step")
    parser.add_argument(
        "--step-batch", type=int, default=0, help="images per step; 0 = --batch, at most 8 on a CPU"
    )
    arguments = parser.parse_args()
    if missing := [n for n in ("torch", "torchvision") if not importlib.util.find_spec(n)]:
        parser.error(f"{' and '.join(missing)} missing: run pip install -e '.[bench]'")
    if least := [name for name in ("rounds", "steps") if getattr(arguments, name) < 1]:
        parser.error(f"--{least[0]}={getattr(arguments, least[0])}: must be 1 or more")
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.dir or make_jpegs(made, max(arguments.images, arguments.batch))
        source = open_folder(folder, "train", memory_limit_mb=0)
        ratios = {}
        for num_views in map(int, arguments.views.split(",")):
            figures = compare(source, num_views, arguments)
            report({"what": f"{num_views} views of {arguments.size} pixels", **figures})
            ratios[f"{num_views} views"] = round(figures["over_torch"], 3)
        report(share_of_waiting(source, arguments))
    print(json.dumps({"ratios": ratios, "threads": THREADS, "cores": os.cpu_count()}))


def report(figures: dict) -> None:
    """Prints one line, its numbers rounded."""
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded), flush=True)


def make_jpegs(folder: str, count: int) -> str:
    """Writes JPEGs of 500 x 375 pixels of quality 90: shapes, shades and a sensor's noise."""
    rng = np.random.default_rng(0)
    for n in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(pixels + rng.normal(scale=6, size=pixels.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(f"{folder}/{n:06d}.jpg", quality=90)
    return folder


def decoder_seconds(source: FolderSource) -> float:
    """Returns the CPU seconds per image that Pillow takes to decode, in this thread."""
    contents = [pathlib.Path(path).read_bytes() for path in source.paths[:128]]
    start = time.process_time()
    for content in contents:
        decode(content)
    return (time.process_time() - start) / len(contents)


def compare(source: FolderSource, num_views: int, arguments: argparse.Namespace) -> dict:
    """Returns the rates of our training loader and of PyTorch's, measured in turns."""
    loader = TrainLoader(
        source,
        batch_size=arguments.batch,
        seed=0,
        crops=CropRecipe(num_views=num_views, size=arguments.size, area=AREA),
        num_threads=THREADS,
        prefetch=AHEAD,
    )
    timed = 2 * AHEAD
    theirs = start_torch(source, num_views, timed, arguments)
    chunks = []
    for n in range(1 + arguments.rounds):
        wall, cpu = time_chunk(loader, n, timed)
        theirs.stdin.write("chunk\n")
        theirs.stdin.flush()
        chunks.append((wall, cpu, float(answer(theirs)), decoder_seconds(source)))
    theirs.communicate()
    num_images = arguments.batch * timed
    columns = zip(*chunks[1:], strict=True)
    wall, cpu, torch_wall, decoding = (statistics.median(column) for column in columns)
    return {
        "images_per_second": num_images / wall,
        "images_per_second_and_core": num_images / wall / THREADS,
        "images_per_cpu_second": num_images / cpu,
        "decoder_images_per_cpu_second": 1 / decoding,
        "of_decode_alone": num_images * decoding / cpu,
        "torch_images_per_second": num_images / torch_wall,
        "over_torch": torch_wall / wall,
    }


def time_chunk(loader: TrainLoader, number: int, timed: int) -> tuple[float, float]:
    """Returns wall and CPU seconds of some batches, with as many under way before as after."""
    batches = loader.iterate(number * (AHEAD + timed))
    exhaust(itertools.islice(batches, AHEAD))
    wall, cpu = time.perf_counter(), time.process_time()
    exhaust(itertools.islice(batches, timed))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    # Finish those under way, so that PyTorch has the cores to itself in its turn.
    exhaust(itertools.islice(batches, AHEAD))
    batches.close()
    return wall, cpu


def exhaust(batches) -> None:
    """Takes all batches and keeps none."""
    for _ in batches:
        pass


def start_torch(
    source: FolderSource, num_views: int, timed: int, arguments: argparse.Namespace
) -> subprocess.Popen:
    """Starts PyTorch's side, which waits for lines on its standard input."""
    settings = {
        "paths": [str(path) for path in source.paths],
        "num_views": num_views,
        "size": arguments.size,
        "area": AREA,
        "aspect": ASPECT,
        "batch_size": arguments.batch,
        "threads": THREADS,
        "ahead": AHEAD,
        "skipped": AHEAD,
        "timed": timed,
    }
    path = pathlib.Path(__file__).with_name("torch_input.py")
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, path], stdin=pipe, stdout=pipe, text=True)
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    return process


def answer(process: subprocess.Popen) -> str:
    """Returns the next line of PyTorch's side; exits if that has ended."""
    line = process.stdout.readline()
    if not line:
        sys.exit(f"error: torch_input.py ended with {process.wait()}; its reason is above")
    return line


def share_of_waiting(source: FolderSource, arguments: argparse.Namespace) -> dict:
    """Returns the share of the time in which the device waits for the next images."""
    root = pathlib.Path(__file__).parent.parent
    config = load_config(f"{root}/configs/{arguments.method}.py:{arguments.recipe}")
    most = 8 if jax.default_backend() == "cpu" else arguments.batch
    batch_size = arguments.step_batch or min(arguments.batch, most)
    config.data.update({"batch_size": batch_size, "num_threads": THREADS, "crop": "host"})
    config.views.size = arguments.size
    check_pretraining(config)
    config = resolve(config)
    mesh = make_mesh(config.data.batch_size)
    experiment = build_experiment(config, num_steps=1000, steps_per_epoch=100)
    init = functools.partial(init_state, experiment, 3)
    state = jax.jit(init, out_shardings=replicated(mesh))()
    step, batches = jit_step(experiment, mesh), build_loader(config, source).iterate(0)
    waited, begun = [], []
    # The first steps compile, and find batches that were made in the meantime.
    for _ in range(2 + config.data.prefetch + arguments.steps):
        begun.append(time.perf_counter())
        images = global_batch(mesh, next(batches)["image"])
        jax.block_until_ready(images)
        waited.append(time.perf_counter() - begun[-1])
        state, metrics = step(state, images)
        jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - begun[-arguments.steps]
    batches.close()
    network = f"{arguments.method}, {config.model.backbone}, width {config.model.width}"
    return {
        "what": f"{network}, {config.method.num_views} views of {arguments.size} pixels",
        "batch": batch_size,
        "images_per_second_of_run": batch_size * arguments.steps / seconds,
        "share_of_waiting": sum(waited[-arguments.steps :]) / seconds,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
