"""Times the train step on one GPU, beside PyTorch's and beside what the chip can do: one table.

    python benchmarks/gpu.py [--seconds=560] [--images=64] [--rounds=20] [--output=gpu.json]
        [--only='byol*'] [--jobs=8] [--size=224] [--width=64]

ResNet-50 at 224 pixels in bfloat16: SimSiam, BYOL, and both with guided stop-gradient, on all views
and on the selected ones; ours draws its views in the step, PyTorch's (torch_step.py) has them
ready. "tuned" is channels last, bfloat16 and torch.compile; "reference" is the papers' definition
in float32. Then a ViT-S/16 of two views. Plain methods have two views an image, guided ones four.

Every point runs in a process of its own. Some compile beside each other, which takes most of the
time; then one after another is timed, alone, and kept in the JSON file. XLA and PyTorch choose
kernels by timing them, so --jobs=1 may find slightly faster ones. No points begin after the given
seconds; the same command goes on with the others. A point that fails is named at the end, with
status 1, and tried again by the next call.

"of the roofline" is the time that the step needs at least, over the time that it takes: its
operations by the rate of a large matrix product, or its bytes by that of a large copy, whichever is
longer. Both rates are measured first, on the same chip. The operations are XLA's count of the
program as it was written, the bytes its count of the compiled one. On a CPU the table has no such
column: use it there to see that the script runs, with --images=4 --size=32 --width=8 --rounds=2.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

METHODS = ("simsiam", "byol", "simsiam_gsg", "byol_gsg")
CEILINGS = "ceilings"
REPEATS = 10  # products or copies of one call, so that starting it does not count
# {name: (side, method, PyTorch's mode or our sources)}, in the order in which they run.
POINTS = {
    CEILINGS: (CEILINGS, "", ""),
    **{method: ("ours", method, "all") for method in METHODS},
    **{f"{method} selected": ("ours", method, "selected") for method in METHODS[2:]},
    "simsiam ViT-S/16": ("vit", "simsiam", "all"),
    **{f"{method} tuned PyTorch": ("torch", method, "tuned") for method in METHODS},
    **{f"{method} reference PyTorch": ("torch", method, "reference") for method in METHODS},
}
COLUMNS = ("point", "images", "step ms", "its views ms", "images/s", "TFLOP/s", "of the roofline")


def main() -> None:
    """Runs the points that are missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=560, help="no point begins later")
    parser.add_argument("--images", type=int, default=64, help="a step of ResNet-50; ViT: 4 times")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of a point")
    parser.add_argument("--size", type=int, default=224, help="pixels of a view")
    parser.add_argument("--width", type=int, default=64, help="of the ResNet")
    parser.add_argument("--only", default="*", help="pattern of the points' names")
    parser.add_argument("--jobs", type=int, default=8, help="points that compile at a time")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("gpu.json"))
    parser.add_argument("--here", choices=POINTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        side, method, way = POINTS[arguments.here]
        measure = SIDES[side](arguments, method, way)
        print("ready", flush=True)
        if sys.stdin.readline():
            print(json.dumps(measure()), flush=True)
        return
    asked = [name for name in POINTS if fnmatch.fnmatch(name, arguments.only) or name == CEILINGS]
    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    failed = run_points(asked, known, arguments)
    Console(width=110).print(to_table(known))
    if left := [name for name in asked if name not in {*known, *failed}]:
        print(f"not yet run: {', '.join(left)}; the same command goes on", file=sys.stderr)
    sys.exit(f"error: failed, for the reasons above: {', '.join(failed)}" if failed else 0)


def run_points(asked: list[str], known: dict, arguments: argparse.Namespace) -> list[str]:
    """Adds the missing figures to `known` and to the file; returns the points that failed."""
    end, failed = time.monotonic() + arguments.seconds, []
    todo = [name for name in asked if name not in known]
    for first in range(0, len(todo), arguments.jobs):
        if time.monotonic() > end:
            break
        group = {name: start(name, arguments) for name in todo[first : first + arguments.jobs]}
        is_ready = {name: bool(process.stdout.readline()) for name, process in group.items()}
        for name, process in group.items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            out, _ = process.communicate("measure\n" if is_ready[name] else "")
            if process.returncode:
                failed.append(name)
                continue
            known[name] = json.loads(out.splitlines()[-1])
            arguments.output.write_text(json.dumps(known, indent=1) + "\n")
    return failed


def start(name: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """Starts the process of a point: it says when it has compiled, then waits for its turn."""
    flags = [f"--{flag}={getattr(arguments, flag)}" for flag in ("images", "rounds")]
    flags += [f"--{flag}={getattr(arguments, flag)}" for flag in ("size", "width")]
    # JAX takes memory as it needs it, and none where PyTorch uses the device.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if POINTS[name][0] in ("ours", "vit"):  # two CPUs, for which operations are counted
        flags_of_xla = os.environ.get("XLA_FLAGS", "")
        env["XLA_FLAGS"] = f"{flags_of_xla} --xla_force_host_platform_device_count=2"
    env |= {"JAX_PLATFORMS": "cpu"} if POINTS[name][0] == "torch" else {}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, __file__, f"--here={name}", *flags],
        stdin=pipe,
        stdout=pipe,
        text=True,
        env=os.environ | env,
    )


def ceilings(arguments: argparse.Namespace, method: str, way: str) -> Callable[[], dict]:
    """Rates of the device: bfloat16 operations and bytes of its memory a second."""
    import jax
    import jax.numpy as jnp

    del method, way
    side, length = (8192, 2**29) if jax.default_backend() == "gpu" else (512, 2**22)
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (length,), jnp.bfloat16)

    @jax.jit
    def products(a, b):
        return jax.lax.fori_loop(0, REPEATS, lambda _, a: a @ b * side**-0.5, a)

    @jax.jit
    def copies(x, factor):
        return jax.lax.fori_loop(0, REPEATS, lambda _, x: x * factor, x)

    def measure() -> dict:
        of_products = median_seconds(
            lambda: jax.block_until_ready(products(a, b)), arguments.rounds
        )
        of_copies = median_seconds(
            lambda: jax.block_until_ready(copies(x, jnp.bfloat16(-1))), arguments.rounds
        )
        return {
            "operations_per_second": REPEATS * 2 * side**3 / of_products,
            "bytes_per_second": REPEATS * 2 * x.nbytes / of_copies,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }

    return measure


def ours(arguments: argparse.Namespace, method: str, sources: str) -> Callable[[], dict]:
    """Our step with a ResNet-50, views included."""
    from step_time import prepare

    overrides = {
        "data.batch_size": arguments.images,
        "model.dtype": "bfloat16",
        "model.width": arguments.width,
        "views.size": arguments.size,
        "method.sources": sources,
    }
    return prepare(f"{method}:imagenet", arguments.rounds, overrides)


def vit(arguments: argparse.Namespace, method: str, sources: str) -> Callable[[], dict]:
    """Our step with a ViT-S/16 and four times as many images, views included."""
    from step_time import prepare

    overrides = {
        "data.batch_size": 4 * arguments.images,
        "model.dtype": "bfloat16",
        "model.backbone": "vit_small" if arguments.width == 64 else "vit_micro",
        "views.size": arguments.size,
        "method.sources": sources,
    }
    return prepare(f"{method}:imagenet_vit", arguments.rounds, overrides)


def theirs(arguments: argparse.Namespace, method: str, mode: str) -> Callable[[], dict]:
    """PyTorch's step with a ResNet-50, on ready views."""
    import torch
    from versus_torch import their_step

    own = {"methods": method, "modes": mode, "batch": arguments.images, "recipe": "imagenet"}
    own |= {"sources": "all", "size": arguments.size, "width": arguments.width}
    step = their_step(argparse.Namespace(**own))
    if mode == "tuned":  # it compiles in its first step
        step()
        torch.cuda.empty_cache()

    def measure() -> dict:
        seconds = median_seconds(step, arguments.rounds)
        return {
            "batch_size": arguments.images,
            "step_ms": 1e3 * seconds,
            "images_per_second": arguments.images / seconds,
            "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20),
            "torch": torch.__version__,
        }

    return measure


SIDES: dict[str, Callable[[argparse.Namespace, str, str], Callable[[], dict]]] = {
    CEILINGS: ceilings,
    "ours": ours,
    "vit": vit,
    "torch": theirs,
}


def median_seconds(step: Callable[[], object], rounds: int) -> float:
    """Times a function that ends when its work is done, after three untimed calls."""
    seconds = []
    for _ in range(3 + rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def to_table(known: dict[str, dict]) -> Table:
    """One row a point, under the rates of the chip."""
    top = known.get(CEILINGS, {"device": "no rates", "operations_per_second": 0})
    title = f"{top['device']}"
    if top["operations_per_second"]:
        title += f": {top['operations_per_second'] / 1e12:,.1f} TFLOP/s in bfloat16, "
        title += f"{top['bytes_per_second'] / 1e9:,.0f} GB/s"
    table = Table(*COLUMNS, title=title)
    for name, row in known.items():
        if name == CEILINGS:
            continue
        cells = [f"{row['step_ms']:,.1f}", f"{row['views_ms']:.1f}" if "views_ms" in row else ""]
        cells.append(f"{row['images_per_second']:,.0f}")
        if "operations" in row and CEILINGS in known:
            seconds = row["step_ms"] / 1e3
            least = max(
                row["operations"] / top["operations_per_second"],
                row["bytes"] / top["bytes_per_second"],
            )
            cells += [f"{row['operations'] / seconds / 1e12:.1f}", f"{least / seconds:.0%}"]
        table.add_row(name, str(row["batch_size"]), *cells)
    return table


if __name__ == "__main__":
    main()
