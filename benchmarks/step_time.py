"""Times the whole train step of each method, views included: one JSON object a line.

    python benchmarks/step_time.py [--recipe=default] [--steps=20] [--methods=simsiam,byol_gsg]

Every method runs in a separate process, so that the peak memory is its own. A line holds the
method, views and images per second, median milliseconds of a step, milliseconds of drawing its
views and their share of the step, compile seconds, peak memory in MiB (of the device if it is
reported, otherwise of the process), and the device. Compare only lines of the same run: a rate
depends as much on the machine as on the code.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, override, resolve
from gsg_jax.devices.mesh import by_image, global_batch, make_mesh, mesh_of, replicated
from gsg_jax.methods import METHODS
from gsg_jax.models.cpu import is_one_cpu
from gsg_jax.models.jit import jit_network
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.state import Experiment, TrainState, init_state
from gsg_jax.train.views import draw_views


def main() -> None:
    """Measures every requested method, each in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="default", help="recipe of the configs")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, comma-separated")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        parser.error(f"--methods={unknown[0]}: take from {', '.join(METHODS)}")
    if arguments.here:
        line = {"method": methods[0], "recipe": arguments.recipe}
        line |= measure(f"{methods[0]}:{arguments.recipe}", arguments.steps)
        print(json.dumps(line), flush=True)
        return
    for method in methods:
        flags = [
            f"--methods={method}",
            f"--recipe={arguments.recipe}",
            f"--steps={arguments.steps}",
        ]
        subprocess.run([sys.executable, __file__, "--here", *flags], check=True)


def measure(name: str, num_steps: int) -> dict:
    """Compiles and times one method's step on random images; the figures of one line."""
    return prepare(name, num_steps)()


def prepare(
    name: str, num_steps: int, overrides: Mapping[str, Any] | None = None
) -> Callable[[], dict]:
    """Compiles one method's step for random images.

    Args:
      name: a config and its recipe, such as "simsiam:imagenet".
      num_steps: timed steps, after three untimed ones.
      overrides: other values of the config.

    Returns:
      Function that times the step and returns the figures of one line; unless the device is one
      CPU, whose program differs, with the operations and the bytes of a step.
    """
    config = load_config(name)
    override(config, overrides or {})
    check_pretraining(config)
    config = resolve(config)
    mesh = make_mesh(config.data.batch_size)
    experiment = build_experiment(config, num_steps=1000, steps_per_epoch=100)
    channels = len(config.views.mean)
    init = functools.partial(init_state, experiment, channels)
    state = jax.jit(init, out_shardings=replicated(mesh))()
    batch = global_batch(mesh, random_images(config, channels))

    start = time.perf_counter()
    step = jit_step(experiment, mesh).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    figures = {
        "batch_size": config.data.batch_size,
        "num_views": config.method.num_views,
        "compile_seconds": round(compile_seconds, 1),
        "device": f"{len(mesh.devices)} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
    }
    if not is_one_cpu(mesh):
        figures["operations"] = count_operations(experiment, state, batch)
        figures["bytes"] = step.cost_analysis()["bytes accessed"]
    time_views = prepare_views(experiment, mesh, batch, num_steps)

    def time_step() -> dict:
        nonlocal state
        seconds = []
        for _ in range(3 + num_steps):
            start = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
        median, peak = statistics.median(seconds[3:]), peak_memory_mb()
        views_seconds = time_views()
        return figures | {
            "views_per_second": round(config.data.batch_size * config.method.num_views / median, 1),
            "images_per_second": round(config.data.batch_size / median, 1),
            "step_ms": round(1e3 * median, 2),
            "views_ms": round(1e3 * views_seconds, 2),
            "views_share": round(views_seconds / median, 3),
            "peak_memory_mb": round(peak),
        }

    return time_step


def count_operations(experiment: Experiment, state: TrainState, batch: jax.Array) -> float:
    """Floating-point operations of a step as it is written, by XLA, which counts them for CPUs.

    The devices must include two CPUs: a program for one CPU differs.
    """
    mesh = mesh_of(jax.devices("cpu")[:2], fsdp=1)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
    return jit_step(experiment, mesh).lower(*shapes).cost_analysis()["flops"]


def prepare_views(
    experiment: Experiment, mesh: jax.sharding.Mesh, batch: jax.Array, num_steps: int
) -> Callable[[], float]:
    """Compiles the drawing of a step's views; returns what times it, after three untimed draws."""
    draw = jit_network(
        functools.partial(draw_views, experiment),
        mesh,
        in_shardings=(by_image(mesh), replicated(mesh)),
    )
    keys = jax.device_put(jax.random.split(jax.random.key(0), 3 + num_steps), replicated(mesh))
    draw = draw.lower(batch, keys[0]).compile()

    def time_views() -> float:
        seconds = []
        for key in jax.block_until_ready(list(keys)):
            start = time.perf_counter()
            jax.block_until_ready(draw(batch, key))
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[3:])

    return time_views


def image_shape(config, channels: int) -> tuple[int, ...]:
    """Shape of a batch as the loader would give it, over all hosts."""
    size, batch_size = config.views.size, config.data.batch_size
    crops = (config.method.num_views,) if config.data.crop == "host" else ()
    return batch_size, *crops, size, size, channels


def random_images(config, channels: int) -> np.ndarray:
    """A batch of noise, uint8."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, image_shape(config, channels), dtype=np.uint8)


def peak_memory_mb() -> float:
    """Peak memory in MiB of the first device if it is reported, otherwise of this process."""
    statistics_of_device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics_of_device:
        return statistics_of_device["peak_bytes_in_use"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
