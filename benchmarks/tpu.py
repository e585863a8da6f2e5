"""Compiles the train step for TPUs that are not there, and predicts what it costs on them.

    pip install 'gsg_jax[tpu-compile]'
    python benchmarks/tpu.py --slices=v5e:2x4 --methods=simsiam_gsg,byol_gsg [--recipe=imagenet]
        [--images=32] [--fsdp=1] [--set model.recompute=true] [--fit] [--jobs=2] [--output=tpu.json]

The TPU's own compiler builds the whole step, views included, in bfloat16, for a described slice; no
TPU is needed and nothing is executed. Every point is compiled in a process of its own, and kept in
the JSON file. Later calls reuse it for the same settings and the same jax and libtpu; delete it
when the step has changed. `--fit` looks for the most images a chip, a multiple of 8, that fit its
memory. A point of the recipe imagenet takes about 4 minutes of one processor core.

Of a chip and step, a row has: the memory of arguments and temporaries, XLA's operations, the bytes
that the program's instructions read and write (tpu_program.py), the collectives, and a prediction.
The prediction is the roofline's: the longer one of operations over the chip's rate for bfloat16
and bytes over its memory's rate. No chip reaches it, and time for what is sent between the chips
is not in it. A loop's body is counted once: with microbatches only the memory is right.
"""

import argparse
import concurrent.futures
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

GIB = 2**30


class Chip(NamedTuple):
    """One chip of a slice: bfloat16 operations and bytes of its memory a second, GiB of memory."""

    operations: float
    bandwidth: float
    gib: float


# Source: Google Cloud's pages of the TPU versions.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 32),
    "v5e": Chip(197e12, 819e9, 16),
    "v5p": Chip(459e12, 2765e9, 95),
    "v6e": Chip(918e12, 1640e9, 32),
}
COLUMNS = (
    *("GiB of a chip's", "Gop", "GB moved", "exchanges (asynchronous)", "MB exchanged"),
    *("ms by op", "ms by bytes", "images/s a chip", "images/s a slice"),
)
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory")


def main() -> None:
    """Compiles every point that is not known yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", default="v5e:2x4", help="such as v5e:2x4,v5p:2x2x1")
    parser.add_argument("--methods", default="simsiam_gsg", help="comma-separated, or all")
    parser.add_argument("--recipe", default="imagenet")
    parser.add_argument("--images", type=int, default=32, help="of a chip and step")
    parser.add_argument("--fsdp", type=int, default=1, help="chips that share a copy of the state")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--fit", action="store_true", help="the most images that fit a chip")
    parser.add_argument("--jobs", type=int, default=1, help="points that compile at a time")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("tpu.json"))
    parser.add_argument("--text", type=pathlib.Path, help="writes the program of one point here")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(compile_point(json.loads(arguments.here), arguments.text)))
        return
    slices = arguments.slices.split(",")
    if unknown := [name for name in slices if name.partition(":")[0] not in CHIPS]:
        parser.error(f"--slices={unknown[0]}: takes VERSION:SHAPE, VERSION of {', '.join(CHIPS)}")
    from gsg_jax.methods import METHODS

    methods = list(METHODS) if arguments.methods == "all" else arguments.methods.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        parser.error(f"--methods={unknown[0]}: take from {', '.join(METHODS)}")
    points = [
        {
            "slice": name,
            "method": method,
            "recipe": arguments.recipe,
            "images": arguments.images,
            "fsdp": arguments.fsdp,
            "set": sorted(arguments.set),
        }
        for name in slices
        for method in methods
    ]
    known = Known(arguments.output, arguments.text)
    look = functools.partial(largest, known.look) if arguments.fit else known.look
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as threads:
        rows = list(threads.map(look, points))
    Console(width=160).print(to_table(rows))


class NotCompiled(Exception):
    """Nothing is known of a point."""


class Known:
    """The figures of the points compiled so far, in a JSON file; several threads may look one up.

    Attributes:
      path: the file.
      text: None, or the file that gets the program of the next point that is looked up.
      compiles: whether points that are not in the file, or are of other libraries, are compiled.
      figures: {point as JSON: its figures}.
    """

    def __init__(
        self, path: pathlib.Path, text: pathlib.Path | None = None, compiles: bool = True
    ) -> None:
        """Reads the file if there is one."""
        self.path, self.text, self.compiles = path, text, compiles
        self.figures = json.loads(path.read_text()) if path.exists() else {}
        self._lock = threading.Lock()

    def look(self, point: dict[str, Any]) -> dict[str, Any]:
        """Returns a point with its figures, from the file or from a process that compiles it.

        Raises:
          NotCompiled: if the file does not have it, and nothing is to be compiled.
        """
        key = json.dumps(point, sort_keys=True)
        found = self.figures.get(key, {})
        if not self.compiles:
            if not found:
                raise NotCompiled(key)
            return point | found
        if self.text or any(found.get(name) != number for name, number in versions().items()):
            found = compile_in_a_process(key, self.text)
            with self._lock:
                self.figures[key] = found
                self.path.write_text(json.dumps(self.figures, indent=1, sort_keys=True) + "\n")
        return point | found


def compile_in_a_process(key: str, text: pathlib.Path | None) -> dict[str, Any]:
    """The figures of a point, given as JSON, from a process of its own."""
    print(f"compiling {key}", file=sys.stderr, flush=True)
    flags = [f"--here={key}", *([f"--text={text}"] if text else [])]
    done = subprocess.run(
        [sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, env=environment()
    )
    if done.returncode:
        raise SystemExit(f"the compilation of {key} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def largest(look: Callable[[dict], dict], point: dict[str, Any]) -> dict[str, Any]:
    """The figures of the most images a chip, a multiple of 8, that fit.

    A try that does not fit ends in a tenth of the time. So, after the number that the memory of the
    first that fitted leads to expect, the number doubles until it is too high, and comes down by a
    quarter of what is left. Near the limit the compiler stores less and computes more by itself.
    """
    fitted, low, high = None, 0, None
    images = -(-point["images"] // 8) * 8
    while high is None or high - low > 8:
        tried = look(point | {"images": images})
        if "error" in tried:
            high = images
        else:
            is_first, fitted, low = not fitted, tried, images
        if high is not None:
            images = high - max(8, (high - low) // 32 * 8)
        else:
            images = max(images_expected(tried), low + 8) if is_first else 2 * low
    return fitted or look(point | {"images": 8})


def images_expected(figures: dict[str, Any]) -> int:
    """How many images fit if the temporaries grow with them; a multiple of 8."""
    of_an_image = figures["temporary_bytes"] / figures["images"]
    free = chip_of(figures).gib * GIB - figures["argument_bytes"]
    return int(free / of_an_image) // 8 * 8


def chip_of(point: dict[str, Any]) -> Chip:
    """The kind of chip of a point's slice."""
    return CHIPS[point["slice"].partition(":")[0]]


def versions() -> dict[str, str]:
    """The libraries that decide what a step is compiled to."""
    try:
        return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is missing: pip install 'gsg_jax[tpu-compile]'") from None


def environment() -> dict[str, str]:
    """That of a process which compiles for a TPU without one."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several compilers at once
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def compile_point(point: dict[str, Any], text: pathlib.Path | None = None) -> dict[str, Any]:
    """Compiles a point in this process; returns its figures, or {"error"} if it does not fit."""
    import jax
    from tpu_program import by_part, collectives, read_program

    start = time.perf_counter()
    try:
        compiled = compile_step(point)
    except jax.errors.JaxRuntimeError as error:
        if not any(word in str(error) for word in OUT_OF_MEMORY):
            raise
        seconds = round(time.perf_counter() - start, 1)
        return {"error": "does not fit", "seconds": seconds, **provenance()}
    program_text = compiled.as_text()
    if text:
        text.write_text(program_text)
    program, memory = read_program(program_text), compiled.memory_analysis()
    parts = by_part(program)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "operations": compiled.cost_analysis()["flops"],
        "bytes": sum(parts.values()),
        "bytes_by_part": parts,
        "collectives": collectives(program_text),
        **provenance(),
    }


def provenance() -> dict[str, str]:
    """The libraries' versions and this repository's commit."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {**versions(), "commit": commit or "unknown"}


def compile_step(point: dict[str, Any]):
    """Lowers and compiles the step of a point; raises if it does not fit."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from step_time import image_shape

    from gsg_jax.config.check import check_pretraining
    from gsg_jax.config.load import load_config, override, resolve, setting_of
    from gsg_jax.devices.mesh import by_image, mesh_of, replicated, sharded
    from gsg_jax.train.build import build_experiment, jit_step
    from gsg_jax.train.state import init_state

    slice_ = topologies.get_topology_desc(platform="tpu", topology_name=point["slice"])
    config = load_config(f"{point['method']}:{point['recipe']}")
    override(config, {"model.dtype": "bfloat16"} | dict(map(setting_of, point["set"])))
    config.data.batch_size = point["images"] * len(slice_.devices)
    check_pretraining(config)
    config = resolve(config)
    mesh = mesh_of(slice_.devices, point["fsdp"])
    experiment = build_experiment(config, num_steps=1000, steps_per_epoch=100)
    channels = len(config.views.mean)
    state = jax.eval_shape(functools.partial(init_state, experiment, channels))
    placed = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        state,
        sharded(mesh, state)
        if point["fsdp"] > 1
        else jax.tree.map(lambda _: replicated(mesh), state),
    )
    shape = image_shape(config, channels)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=by_image(mesh))
    return jit_step(experiment, mesh, state).lower(placed, images).compile()


def predicted(figures: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a step by the roofline: (by the operations, by the bytes)."""
    chip = chip_of(figures)
    return figures["operations"] / chip.operations, figures["bytes"] / chip.bandwidth


def sent(figures: dict[str, Any]) -> dict[str, int]:
    """All collectives of a step together: {"count", "bytes", "asynchronous"}."""
    kinds = figures["collectives"].values()
    return {name: sum(x[name] for x in kinds) for name in ("count", "bytes", "asynchronous")}


def num_chips(name: str) -> int:
    """Chips of a slice: 8 for v5e:2x4."""
    return math.prod(map(int, name.partition(":")[2].split("x")))


def to_table(rows: list[dict[str, Any]]) -> Table:
    """One row a point."""
    table = Table("slice", "method", "images a chip", "compile s", *COLUMNS)
    for row in rows:
        about = row["slice"], row["method"], str(row["images"]), f"{row['seconds']:.0f}"
        table.add_row(*about, *cells(row))
    return table


def cells(row: dict[str, Any]) -> list[str]:
    """What stands in the COLUMNS of a point."""
    chip = chip_of(row)
    if "error" in row:
        return [f"{row['error']} {chip.gib:.0f}", *[""] * (len(COLUMNS) - 1)]
    gib = (row["argument_bytes"] + row["temporary_bytes"]) / GIB
    operations, moved = predicted(row)
    images = row["images"] / max(operations, moved)
    exchanges = sent(row)
    return [
        f"{gib:.2f} of {chip.gib:.0f}",
        f"{row['operations'] / 1e9:,.0f}",
        f"{row['bytes'] / 1e9:.1f}",
        f"{exchanges['count']} ({exchanges['asynchronous']})",
        f"{exchanges['bytes'] / 1e6:.0f}",
        f"{1e3 * operations:.1f}",
        f"{1e3 * moved:.1f}",
        f"{images:,.0f}",
        f"{images * num_chips(row['slice']):,.0f}",
    ]


if __name__ == "__main__":
    main()
