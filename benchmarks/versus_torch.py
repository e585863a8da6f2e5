"""Times our train step and PyTorch's in turns: one table, then one JSON object of ratios.

    python benchmarks/versus_torch.py [--methods=simsiam_gsg,byol_gsg] [--modes=reference]
        [--rounds=7] [--recipe=cifar10] [--batch=64] [--size=32] [--width=64]

For each method and mode, one process of each side steps in turns, so that other load of the machine
affects both. Both get the same ready views of every image, two for plain methods and four for
guided ones, uint8 on our side and float32 on PyTorch's. A step ends when its loss and its update
are computed. Ours is the step of a user's run; guided methods run once on "all" views and once on
the "selected" ones. PyTorch's is in torch_step.py: "reference" is the papers' definition in
float32, every view a separate pass; "channels_last" adds that layout; "tuned" adds bfloat16 and
torch.compile, and ours then takes bfloat16 as well.

The last line holds, for each method, mode and sources, PyTorch's median time over ours: our
images a second over PyTorch's. PyTorch comes with `pip install -e '.[bench]'`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

METHODS = ("simsiam", "simsiam_gsg", "byol", "byol_gsg")
MODES = ("reference", "channels_last", "tuned")
COLUMNS = (
    "method",
    "mode",
    "sources",
    "PyTorch ms",
    "ours ms",
    "PyTorch images/s",
    "ours",
    "ratio",
)


def main() -> None:
    """Compares the two sides, or runs one of them (--side)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--modes", default="reference", help=f"of {', '.join(MODES)}")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--recipe", default="cifar10", help="network and image size")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--size", type=int, default=0, help="pixels of a view; 0 = the recipe's")
    parser.add_argument("--width", type=int, default=0, help="of a ResNet; 0 = the recipe's")
    parser.add_argument("--side", choices=("ours", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--sources", default="all", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, known in (("methods", METHODS), ("modes", MODES)):
        chosen = getattr(arguments, name).split(",")
        if unknown := [one for one in chosen if one not in known]:
            parser.error(f"--{name}={unknown[0]}: take from {', '.join(known)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds={arguments.rounds}: must be 1 or more")
    if arguments.side:
        serve((our_step if arguments.side == "ours" else their_step)(arguments))
        return
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Prints the table and the line of ratios."""
    table, ratios = Table(*COLUMNS), {}
    for mode in arguments.modes.split(","):
        for method in arguments.methods.split(","):
            all_sources = ("all", "selected") if method.endswith("_gsg") else ("all",)
            sides = {"torch": start(arguments, method, mode, "torch", "all")}
            for sources in all_sources:
                sides[sources] = start(arguments, method, mode, "ours", sources)
            medians = in_turns(sides, arguments.rounds)
            for sources in all_sources:
                ours, theirs = medians[sources], medians["torch"]
                ratios[f"{method}/{mode}/{sources}"] = round(theirs / ours, 3)
                rates = [f"{arguments.batch / seconds:.1f}" for seconds in (theirs, ours)]
                times = [f"{1e3 * seconds:.1f}" for seconds in (theirs, ours)]
                table.add_row(method, mode, sources, *times, *rates, f"{theirs / ours:.2f}")
            if len(all_sources) > 1:
                gain = medians["all"] / medians["selected"]
                ratios[f"{method}/{mode}/selected over all"] = round(gain, 3)
    Console(width=110).print(table)
    print(json.dumps({"ratios": ratios, "device": device_of(arguments)}))


def start(
    arguments: argparse.Namespace, method: str, mode: str, side: str, sources: str
) -> subprocess.Popen:
    """Starts one side; returns it once it is ready."""
    flags = [f"--methods={method}", f"--modes={mode}", f"--side={side}", f"--sources={sources}"]
    for name in ("recipe", "batch", "size", "width"):
        flags.append(f"--{name}={getattr(arguments, name)}")
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, __file__, *flags], stdin=pipe, stdout=pipe, text=True
    )
    answer(process)
    return process


def answer(process: subprocess.Popen) -> str:
    """Returns the next line of a side; ends the program if the side has ended."""
    line = process.stdout.readline()
    if not line:
        sys.exit(
            f"error: {' '.join(process.args)} ended with {process.wait()}; the reason is above"
        )
    return line


def in_turns(sides: dict[str, subprocess.Popen], rounds: int) -> dict[str, float]:
    """Returns each side's median seconds of a step, and ends the sides."""
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, process in sides.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            seconds[name].append(float(answer(process)))
    for process in sides.values():
        process.stdin.close()
        process.wait()
    return {name: statistics.median(values) for name, values in seconds.items()}


def serve(step) -> None:
    """Runs a step for every line of standard input, and prints its seconds."""
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print(time.perf_counter() - begin, flush=True)


def config_of(arguments: argparse.Namespace):
    """Returns the config of both sides: ready views, only the pairs are drawn in the step."""
    from gsg_jax.config.check import check_pretraining
    from gsg_jax.config.load import load_config, resolve

    root = pathlib.Path(__file__).parent.parent
    config = load_config(f"{root}/configs/{arguments.methods}.py:{arguments.recipe}")
    config.method.sources = arguments.sources
    if arguments.methods.endswith("_gsg"):
        config.method.update({"num_views": 4, "pairing": "permutation"})
    config.data.update({"batch_size": arguments.batch, "crop": "host"})
    draw_nothing(config.views)
    config.views.size = arguments.size or config.views.size
    config.model.width = arguments.width or config.model.width
    config.model.dtype = "bfloat16" if arguments.modes == "tuned" else "float32"
    check_pretraining(config)
    return resolve(config)


def draw_nothing(views) -> None:
    """Turns off every augmentation: a step's views are the crops that it gets."""
    nothing = ("flip_probability", "jitter_probability", "grayscale_probability")
    views.update(dict.fromkeys(nothing, 0.0))
    views.update({"blur_probability": (0.0,), "solarize_probability": (0.0,)})


def our_step(arguments: argparse.Namespace):
    """Returns a function that runs a step to its end."""
    import functools

    import jax
    from step_time import random_images

    from gsg_jax.devices import mesh as meshes
    from gsg_jax.train.build import build_experiment, jit_step
    from gsg_jax.train.state import init_state

    config = config_of(arguments)
    mesh = meshes.make_mesh(config.data.batch_size)
    experiment = build_experiment(config, num_steps=1000, steps_per_epoch=100)
    init = functools.partial(init_state, experiment, len(config.views.mean))
    state = jax.jit(init, out_shardings=meshes.replicated(mesh))()
    views = meshes.global_batch(mesh, random_images(config, len(config.views.mean)))
    step = jit_step(experiment, mesh).lower(state, views).compile()

    def run():
        nonlocal state
        state, metrics = step(state, views)
        jax.block_until_ready((state, metrics))

    return run


def their_step(arguments: argparse.Namespace):
    """Does the same for PyTorch."""
    import torch
    from step_time import random_images
    from torch_step import Step

    config = config_of(arguments)
    has_gpu = torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    step = Step(config, arguments.modes, device)
    views = random_images(config, len(config.views.mean)) / 255.0
    views = step.placed_views(views.astype("float32"))

    def run():
        loss = step(views)
        if has_gpu:
            torch.cuda.synchronize()
        return loss

    return run


def device_of(arguments: argparse.Namespace) -> str:
    """Describes the device, the network and the batch."""
    import jax

    config = config_of(argparse.Namespace(**vars(arguments) | {"methods": "simsiam_gsg"}))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    network = f"{config.model.backbone}, width {config.model.width}, {config.views.size} pixels"
    return f"{device}; {network}, batch {arguments.batch}, jax {jax.__version__}"


if __name__ == "__main__":
    main()
