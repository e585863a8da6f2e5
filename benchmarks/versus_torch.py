"""Times our train step and PyTorch's in turns: one table, then one JSON object of ratios.

    python benchmarks/versus_torch.py [--methods=simsiam_gsg,byol_gsg] [--modes=reference]
        [--rounds=7] [--recipe=cifar10] [--batch=64] [--size=32] [--width=64]
        [--draw_views] [--dtype=bfloat16] [--peak_tflops=989]

For each method and mode, one process of each side steps in turns, so that other load of the machine
affects both. Both get the same four ready views of every image, uint8 on our side and float32 on
PyTorch's. A step ends when its loss and its update are computed. Ours is the step of a user's run;
guided methods run once on "all" views and once on the "selected" ones. PyTorch's is in
torch_step.py: "reference" is the papers' definition in float32, every view a separate pass;
"channels_last" adds that layout; "tuned" adds bfloat16 and torch.compile, and ours then takes
bfloat16 as well.

With --draw_views our step also draws its views; PyTorch's always has them ready. --dtype sets our
activations' type in every mode. If XLA counts all operations of a step (not on one CPU, where some
are in loops), the last line has our TFLOP/s, and with --peak_tflops the share of that peak.

On a GPU, ResNet-50 at 224 pixels is measured by

    python benchmarks/versus_torch.py --recipe=imagenet --batch=256 --draw_views --dtype=bfloat16 \
        --methods=simsiam_gsg,byol_gsg --modes=reference,tuned --peak_tflops=989

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
    parser.add_argument("--draw_views", action="store_true", help="our step draws its views too")
    parser.add_argument("--dtype", default="", help="of our activations; '' = by the mode")
    parser.add_argument("--peak_tflops", type=float, default=0.0, help="of the device, TFLOP/s")
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
        serve(*(our_step if arguments.side == "ours" else their_step)(arguments))
        return
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Prints the table and the line of ratios."""
    table, ratios, work = Table(*COLUMNS), {}, {}
    for mode in arguments.modes.split(","):
        for method in arguments.methods.split(","):
            all_sources = ("all", "selected") if method.endswith("_gsg") else ("all",)
            sides, operations = {}, {}
            sides["torch"], _ = start(arguments, method, mode, "torch", "all")
            for sources in all_sources:
                sides[sources], flops = start(arguments, method, mode, "ours", sources)
                operations[sources] = float(flops)
            medians = in_turns(sides, arguments.rounds)
            for sources in all_sources:
                ours, theirs = medians[sources], medians["torch"]
                ratios[f"{method}/{mode}/{sources}"] = round(theirs / ours, 3)
                work |= work_of(f"{method}/{mode}/{sources}", operations[sources], ours, arguments)
                rates = [f"{arguments.batch / seconds:.1f}" for seconds in (theirs, ours)]
                times = [f"{1e3 * seconds:.1f}" for seconds in (theirs, ours)]
                table.add_row(method, mode, sources, *times, *rates, f"{theirs / ours:.2f}")
            if len(all_sources) > 1:
                gain = medians["all"] / medians["selected"]
                ratios[f"{method}/{mode}/selected over all"] = round(gain, 3)
    Console(width=110).print(table)
    print(json.dumps({"ratios": ratios, **work, "device": device_of(arguments)}))


def work_of(name: str, operations: float, seconds: float, arguments: argparse.Namespace) -> dict:
    """Returns TFLOP/s of our step and their share of the peak, if these are known."""
    if not operations:
        return {}
    rate = operations / seconds / 1e12
    figures = {f"{name}/tflops": round(rate, 3)}
    if arguments.peak_tflops:
        figures[f"{name}/share_of_peak"] = round(rate / arguments.peak_tflops, 4)
    return figures


def start(
    arguments: argparse.Namespace, method: str, mode: str, side: str, sources: str
) -> tuple[subprocess.Popen, str]:
    """Starts one side; returns it once it is ready, with its step's operations, 0 = unknown."""
    flags = [f"--methods={method}", f"--modes={mode}", f"--side={side}", f"--sources={sources}"]
    if arguments.draw_views:
        flags.append("--draw_views")
    for name in ("recipe", "batch", "size", "width", "dtype"):
        flags.append(f"--{name}={getattr(arguments, name)}")
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, __file__, *flags], stdin=pipe, stdout=pipe, text=True
    )
    return process, answer(process)


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


def serve(step, operations: float) -> None:
    """Runs a step for every line of standard input, and prints its seconds."""
    for _ in range(2):
        step()
    print(operations, flush=True)
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
    config.method.update({"num_views": 4, "sources": arguments.sources})
    if arguments.methods.endswith("_gsg"):
        config.method.pairing = "permutation"
    config.data.update({"batch_size": arguments.batch, "crop": "host"})
    if not arguments.draw_views:
        draw_nothing(config.views)
    config.views.size = arguments.size or config.views.size
    config.model.width = arguments.width or config.model.width
    by_mode = "bfloat16" if arguments.modes == "tuned" else "float32"
    config.model.dtype = arguments.dtype or by_mode
    check_pretraining(config)
    return resolve(config)


def draw_nothing(views) -> None:
    """Turns off every augmentation: a step's views are the crops that it gets."""
    nothing = ("flip_probability", "jitter_probability", "grayscale_probability")
    views.update(dict.fromkeys(nothing, 0.0))
    views.update({"blur_probability": (0.0,), "solarize_probability": (0.0,)})


def drawn_views(config):
    """Views of noise, uint8 [B, V, size, size, C]."""
    import numpy as np

    shape = (config.data.batch_size, config.method.num_views, *2 * (config.views.size,))
    shape += (len(config.views.mean),)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def our_step(arguments: argparse.Namespace):
    """Returns a function that runs a step to its end, and the step's operations, 0 = unknown."""
    import functools

    import jax

    from gsg_jax.devices import mesh as meshes
    from gsg_jax.models.cpu import is_one_cpu
    from gsg_jax.train.build import build_experiment, jit_step
    from gsg_jax.train.state import init_state

    config = config_of(arguments)
    mesh = meshes.make_mesh(config.data.batch_size)
    experiment = build_experiment(config, num_steps=1000, steps_per_epoch=100)
    init = functools.partial(init_state, experiment, len(config.views.mean))
    state = jax.jit(init, out_shardings=meshes.replicated(mesh))()
    views = meshes.global_batch(mesh, drawn_views(config))
    step = jit_step(experiment, mesh).lower(state, views).compile()
    operations = 0.0 if is_one_cpu(mesh) else step.cost_analysis().get("flops", 0.0)

    def run():
        nonlocal state
        state, metrics = step(state, views)
        jax.block_until_ready((state, metrics))

    return run, operations


def their_step(arguments: argparse.Namespace):
    """Does the same for PyTorch."""
    import torch
    from torch_step import Step

    config = config_of(arguments)
    has_gpu = torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    step = Step(config, arguments.modes, device)
    views = step.placed_views((drawn_views(config) / 255.0).astype("float32"))

    def run():
        loss = step(views)
        if has_gpu:
            torch.cuda.synchronize()
        return loss

    return run, 0.0


def device_of(arguments: argparse.Namespace) -> str:
    """Describes the device, the network and the batch."""
    import jax

    config = config_of(argparse.Namespace(**vars(arguments) | {"methods": "simsiam_gsg"}))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    network = f"{config.model.backbone}, width {config.model.width}, {config.views.size} pixels"
    return f"{device}; {network}, batch {arguments.batch}, jax {jax.__version__}"


if __name__ == "__main__":
    main()
