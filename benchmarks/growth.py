"""Counts how the cost of a train step grows with batch, views, width and devices.

    python benchmarks/growth.py [--method=simsiam_gsg] [--recipe=cifar10] [--batch=64,32,128]
        [--views=4,2] [--width=32,16,64] [--devices=2,1,4,8]

Nothing is executed or timed: the step is compiled for fake CPU devices, and the compiled module is
read. The first value of each flag is the base; one flag at a time takes its other values. A line
has the figures of one device: the step's floating-point operations and the bytes that its
instructions read and write, as XLA counts them; the temporary memory; and the bytes of the results
of its collectives, including the figures of logged steps. `width` is a ResNet's.

XLA counts the body of a loop once, whatever its length. The step's own loops only mix random bits.
"products_in_loops" is the number of convolutions and matrix products in loops; if it is above 0,
the operations are too few. A process with a single CPU device would have such loops
(gsg_jax/models/cpu), so a mesh of one device is taken from several. The program is therefore the
plain XLA of GPUs and TPUs, but its fusions and memory are those of the CPU's compiler.

The last line is one JSON object with the same figures.
"""

import argparse
import functools
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from step_time import image_shape

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, resolve
from gsg_jax.devices.mesh import by_image, replicated
from gsg_jax.methods import METHODS
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.state import init_state

AXES = {"batch": "64,32,128", "views": "4,2", "width": "32,16,64", "devices": "2,1,4,8"}
PAIRINGS = {2: "halves", 4: "permutation"}  # of guided stop-gradient, by views
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "all-to-all",
)
# Columns of the table behind the axes: the figures they hold, and the unit.
COLUMNS = {
    "M parameters": ("parameters", 1e6),
    "GFLOP": ("flops", 1e9),
    "GB accessed": ("bytes_accessed", 1e9),
    "MiB temporary": ("temporary_bytes", 2**20),
    "MB collectives": ("collective_bytes", 1e6),
}


def main() -> None:
    """Counts every point, then prints the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="simsiam_gsg", choices=METHODS, metavar="METHOD")
    parser.add_argument("--recipe", default="cifar10", help="recipe of the configs")
    for axis, values in AXES.items():
        parser.add_argument(f"--{axis}", default=values, help="the base first, comma-separated")
    arguments = parser.parse_args()
    axes = {axis: [int(value) for value in getattr(arguments, axis).split(",")] for axis in AXES}
    if least := [axis for axis, values in axes.items() if min(values) < 1]:
        parser.error(f"--{least[0]}={getattr(arguments, least[0])}: takes numbers from 1")
    if uneven := [n for n in axes["devices"] if any(batch % n for batch in axes["batch"])]:
        parser.error(f"--devices={uneven[0]}: does not divide --batch={arguments.batch}")
    give_fake_devices(max(2, *axes["devices"]))
    results = [count(arguments.method, arguments.recipe, point) for point in points_of(axes)]
    title = f"one step of {arguments.method}, recipe {arguments.recipe}, of one device"
    Console(width=120).print(to_table(results, title))
    about = {"method": arguments.method, "recipe": arguments.recipe, "jax": jax.__version__}
    print(json.dumps(about | {"results": results}))


def give_fake_devices(count: int) -> None:
    """Gives this process fake CPU devices; fast code generation, which changes no count."""
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    jax.config.update("jax_platforms", "cpu")


def points_of(axes: dict[str, list[int]]) -> list[dict[str, int]]:
    """Returns the base, then each axis' other values beside the base's of all other axes."""
    base = {axis: values[0] for axis, values in axes.items()}
    return [base, *(base | {axis: value} for axis in axes for value in axes[axis][1:])]


def count(method: str, recipe: str, point: dict[str, int]) -> dict:
    """Compiles a step and reads its module.

    Args:
      method: a name of METHODS.
      recipe: a name of RECIPES.
      point: images a batch over all devices, views an image, width of the ResNet, devices.

    Returns:
      The point and its figures, of one device.
    """
    config = config_of(method, recipe, point)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[: point["devices"]]), ("data",))
    experiment = build_experiment(config, num_steps=1000, steps_per_epoch=100)
    channels = len(config.views.mean)
    state = jax.eval_shape(functools.partial(init_state, experiment, channels))
    images = jax.ShapeDtypeStruct(image_shape(config, channels), jnp.uint8)
    arguments = placed(state, replicated(mesh)), placed(images, by_image(mesh))
    step = jit_step(experiment, mesh).lower(*arguments).compile()
    costs, text = step.cost_analysis(), step.as_text()
    kinds = collective_bytes(text)
    return point | {
        "parameters": size_of(state.params),
        "running_statistics": size_of(state.batch_stats),
        "flops": int(costs["flops"]),
        "bytes_accessed": int(costs["bytes accessed"]),
        "temporary_bytes": step.memory_analysis().temp_size_in_bytes,
        "collective_bytes": sum(kinds.values()),
        "collective_bytes_by_kind": kinds,
        "products_in_loops": products_in_loops(text),
    }


def config_of(method: str, recipe: str, point: dict[str, int]):
    """The config of a point."""
    config = load_config(f"configs/{method}.py:{recipe}")
    config.data.batch_size = point["batch"]
    config.method.num_views = point["views"]
    if "pairing" in config.method:
        config.method.pairing = PAIRINGS.get(point["views"], config.method.pairing)
    config.model.width = point["width"]
    check_pretraining(config)
    return resolve(config)


def placed(tree, sharding: jax.sharding.Sharding):
    """The same shapes, with a sharding."""
    place = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    return jax.tree.map(lambda x: place(x.shape, x.dtype), tree)


def size_of(tree) -> int:
    """Numbers in a tree."""
    return sum(x.size for x in jax.tree.leaves(tree))


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes of the results of a module's collectives, by kind.

    Args:
      text: the compiled module, HLO.

    Returns:
      Bytes by kind. An asynchronous collective is counted at its end, because its start also holds
      the operand.
    """
    instruction = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-done)?\(")
    found = {}
    for line in text.splitlines():
        if match := instruction.search(line):
            shapes, kind = match.groups()
            found[kind] = found.get(kind, 0) + bytes_of(shapes)
    return found


def products_in_loops(text: str) -> int:
    """Number of convolutions and matrix products in a module's loops, which are counted once."""
    product = re.compile(r" (?:convolution|dot)\(.*op_name=\"[^\"]*while/body")
    return sum(1 for line in text.splitlines() if product.search(line))


def bytes_of(shapes: str) -> int:
    """Bytes of an array or a tuple of arrays, as HLO writes them: (f32[4,8]{1,0}, s32[])."""
    total = 0
    for bits, sizes in re.findall(r"\b(?:[a-z]+?(\d+)\w*|pred)\[([\d,]*)\]", shapes):
        numbers = np.prod([int(size) for size in sizes.split(",") if size], dtype=np.int64)
        total += int(numbers) * max(8, int(bits or 8)) // 8
    return total


def to_table(results: list[dict], title: str) -> Table:
    """One row a point; in brackets the figure over the base's."""
    table, base = Table(*AXES, *COLUMNS, title=title), results[0]
    for result in results:
        cells = [str(result[axis]) for axis in AXES]
        for name, unit in COLUMNS.values():
            over = f" ({result[name] / base[name]:.2f})" if base[name] else ""
            cells.append(f"{result[name] / unit:.2f}{over}")
        table.add_row(*cells)
    if any(result["products_in_loops"] for result in results):
        table.caption = "convolutions or products in loops, counted once: operations are too few"
    return table


if __name__ == "__main__":
    main()
