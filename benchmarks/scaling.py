"""Predicts what a step's collectives cost on TPU slices, from modules compiled for fake devices.

    python benchmarks/scaling.py [--methods=simsiam_gsg,byol_gsg,moco_v2,simclr]
        [--devices=8,256,512] [--batch=32,64] [--recipe=imagenet] [--set=model.width=16]
        [--counts=docs/scaling.json] [--utilization=0.4] [--hop_microseconds=1]

Nothing is computed or timed. The step is compiled for as many fake CPU devices as a slice has
chips, and every collective of the module is counted: its kind, its bytes, and the part of the step
that it stands in. The counts are kept in the file of --counts; what stands there is not compiled
again, so that a second call makes the tables alone. The first value of --batch, images a device, is
compiled for every number of devices, the other for the fewest: from the two follows how bytes and
operations grow with the batch, and every larger module has to confirm it.

From the counts and the published rates of a slice follow the seconds, by the model of "How to Scale
Your Model" (jax-ml.github.io/scaling-book/sharding): bytes over the links' bandwidth, and besides a
latency of every hop. Compute is the counted operations at --utilization of the peak. All of it is a
prediction. docs/scaling.md has the tables and what they leave out.

The last line is one JSON object with the figures of the tables.
"""

import argparse
import functools
import json
import math
import pathlib
import re
import subprocess
import sys
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from growth import COLLECTIVES, bytes_of, give_fake_devices, placed, size_of
from rich import box
from rich.console import Console
from rich.table import Table
from step_time import image_shape

from gsg_jax.config.check import check_overrides, check_pretraining, load_config, resolve
from gsg_jax.devices import mesh as meshes
from gsg_jax.methods import METHODS
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.step import Experiment, TrainState, init_state

ROOT = pathlib.Path(__file__).parent.parent
METHODS_SHOWN = "simsiam_gsg,byol_gsg,moco_v2,simclr"
# Where a collective stands in the step: "state" is what run.fsdp adds outside of the network, and
# the figures are those of logged steps alone.
PARTS = ("norm_forward", "norm_backward", "gradient", "loss", "state", "figures")
HIDDEN = ("gradient",)  # may run beside the backward pass; the step waits for all others
LARGEST_BATCH = 4096  # images a device; above it none is looked for


class Slice(NamedTuple):
    """A TPU slice by its published figures.

    Attributes:
      axes: chips along each axis of the mesh.
      is_torus: whether each axis closes to a ring.
      link_bandwidth: of one link, one way, bytes/s.
      peak: bfloat16 operations/s a chip.
    """

    axes: tuple[int, ...]
    is_torus: bool
    link_bandwidth: float
    peak: float

    @property
    def chips(self) -> int:
        """JAX devices of the slice: both generations show a chip as one."""
        return math.prod(self.axes)

    @property
    def bandwidth(self) -> float:
        """Bytes/s that every chip can send while all do: a ring's chips have two links an axis."""
        links = 2 if self.is_torus else 1
        return links * len(self.axes) * self.link_bandwidth

    @property
    def hops(self) -> float:
        """Links between the two chips that are farthest apart."""
        return sum(size / 2 if self.is_torus else size - 1 for size in self.axes)


# Cloud TPU's v5e has 4 links of 1,600 Gbit/s together, v5p 6 links of 4,800 (one way): 50 and 100
# GB/s a link. The number in a v5p's name counts TensorCores, 2 a chip; a v5e's counts chips.
V5E = {"link_bandwidth": 50e9, "peak": 197e12}
V5P = {"link_bandwidth": 100e9, "peak": 459e12}
SLICES = {
    "v5e-8": Slice((2, 4), False, **V5E),
    "v5e-16": Slice((4, 4), False, **V5E),
    "v5e-64": Slice((8, 8), False, **V5E),
    "v5e-256": Slice((16, 16), True, **V5E),
    "v5p-16": Slice((2, 2, 2), False, **V5P),
    "v5p-128": Slice((4, 4, 4), True, **V5P),
    "v5p-512": Slice((4, 8, 8), True, **V5P),
    "v5p-1024": Slice((8, 8, 8), True, **V5P),
}


class Collective(NamedTuple):
    """Collectives of one kind in one part of the step.

    Attributes:
      kind: one of growth.COLLECTIVES.
      part: one of PARTS, or what else the step does.
      group: devices that take part in one.
      count: how many there are.
      bytes: of the whole arrays together, that every device of a group ends with or begins with.
    """

    kind: str
    part: str
    group: int
    count: int
    bytes: int


class Failed(Exception):
    """A module could not be compiled, or is not what the formulas say."""


def main() -> None:
    """Compiles what is not counted yet, then prints the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=METHODS_SHOWN, help="comma-separated")
    parser.add_argument("--devices", default="8,256,512", help="fake devices")
    parser.add_argument("--batch", default="32,64", help="images a device; tables take the first")
    parser.add_argument("--recipe", default="imagenet", help="recipe of the configs")
    parser.add_argument("--set", default="", help="config values, KEY=VALUE, comma-separated")
    parser.add_argument("--counts", default=str(ROOT / "docs/scaling.json"), help="file of counts")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a module may take")
    parser.add_argument("--utilization", type=float, default=0.4, help="of the peak, assumed")
    parser.add_argument("--hop_microseconds", type=float, default=1.0, help="latency of a hop")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    devices, batches = numbers_of(arguments.devices), numbers_of(arguments.batch)
    if unknown := [method for method in methods if method not in METHODS]:
        parser.error(f"--methods={unknown[0]}: take from {', '.join(METHODS)}")
    for name, values, least in (("devices", devices, 2), ("batch", batches, 1)):
        if min(values) < least:
            parser.error(f"--{name}={min(values)}: takes numbers from {least}")
    if not 0 < arguments.utilization <= 1:
        parser.error(f"--utilization={arguments.utilization}: must be above 0 and at most 1")
    about = {"recipe": arguments.recipe, "set": arguments.set}
    points = [about | point for point in points_of(methods, devices, batches)]
    if arguments.here:
        print(json.dumps(count(**points[0])), flush=True)
        return
    path = pathlib.Path(arguments.counts)
    counts = [counted(path, point, arguments.timeout) for point in points]
    console = Console(width=200)
    console.print(table_of_counts([one for one in counts if one["batch"] == batches[0]]))
    predictions = predictions_of(counts, batches, arguments)
    if predictions:
        console.print(table_of_predictions(predictions, batches[0]))
    print(json.dumps(about | {"utilization": arguments.utilization, "results": predictions}))


def predictions_of(
    counts: list[dict], batches: list[int], arguments: argparse.Namespace
) -> list[dict]:
    """A line a method and slice whose chips were counted; none from one batch alone."""
    if len(batches) < 2:
        return []
    predictions = []
    for method in dict.fromkeys(one["method"] for one in counts):
        of_method = [one for one in counts if one["method"] == method]
        counted_devices = {one["devices"] for one in of_method}
        for name, hardware in SLICES.items():
            if hardware.chips in counted_devices:
                predicted = predict(
                    growth_of(of_method, hardware.chips), hardware, batches[0], arguments
                )
                predictions.append({"method": method, "slice": name} | predicted)
    return predictions


def numbers_of(text: str) -> list[int]:
    """Comma-separated whole numbers."""
    return [int(number) for number in text.split(",")]


def points_of(methods: list[str], devices: list[int], batches: list[int]) -> list[dict]:
    """What is compiled: the first batch everywhere, the others on the fewest devices."""
    return [
        {"method": method, "devices": number, "batch": batch}
        for method in methods
        for number in devices
        for batch in batches
        if batch == batches[0] or number == min(devices)
    ]


def counted(path: pathlib.Path, point: dict, timeout: float) -> dict:
    """The counts of a point, from the file, or compiled in a process of its own and added to it."""
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for one in known:
        if all(one[key] == value for key, value in point.items()):
            return one
    print(f"compiling {point} ...", file=sys.stderr, flush=True)
    flags = [f"--methods={point['method']}"]
    flags += [f"--{name}={point[name]}" for name in ("devices", "batch", "recipe", "set")]
    command = [sys.executable, __file__, "--here", *flags]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=timeout, check=True
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{point} took more than {timeout:.0f} s: raise --timeout") from None
    except subprocess.CalledProcessError as error:
        raise Failed(f"{point} ended with {error.returncode}; its reason stands above") from None
    one = json.loads(done.stdout.splitlines()[-1])
    with path.open("a") as file:
        file.write(json.dumps(one) + "\n")
    return one


def count(*, method: str, devices: int, batch: int, recipe: str, set: str) -> dict:
    """Compiles a step and counts its collectives.

    Args:
      method: a name of METHODS.
      devices: fake CPU devices.
      batch: images a device.
      recipe: a name of RECIPES.
      set: config values, KEY=VALUE, comma-separated.

    Returns:
      The point and its counts, of one device.

    Raises:
      Failed: where gradient and BatchNorm do not have the bytes that the formulas say.
    """
    give_fake_devices(devices)
    config = config_of(method, recipe, batch * devices, set)
    if config.model.bn_group_images and batch % config.model.bn_group_images:
        raise Failed(
            f"--set=model.bn_group_images={config.model.bn_group_images}: has to divide the "
            f"{batch} images of a device, since a group's sums are otherwise sent after all"
        )
    mesh = meshes.make_mesh(config.data.batch_size, config.run.fsdp)
    experiment = build_experiment(config, num_steps=1000, steps_per_epoch=100)
    channels = len(config.views.mean)
    state = jax.eval_shape(functools.partial(init_state, experiment, channels))
    images = jax.ShapeDtypeStruct(image_shape(config, channels), jnp.uint8)
    place = functools.partial(jax.tree.map, placed)
    arguments = place(state, meshes.sharded(mesh, state)), placed(images, meshes.by_image(mesh))
    step = jit_step(experiment, mesh, state).lower(*arguments).compile()
    memory = step.memory_analysis()
    target_views = experiment.num_views if experiment.has_target_pass else 0
    result = {
        "method": method,
        "recipe": recipe,
        "set": set,
        "devices": devices,
        "batch": batch,
        "parameters": size_of(state.params),
        "flops": int(step.cost_analysis()["flops"]),
        "backward_share": 2 / (3 + target_views / experiment.num_sources),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "collectives": collectives_of(step.as_text(), devices),
        "jax": jax.__version__,
    }
    check(result, formulas_of(config, experiment, state), config.run.fsdp > 1)
    return result


def config_of(method: str, recipe: str, batch_size: int, set: str):
    """The config of a point: activations are bfloat16, as on a TPU."""
    config = load_config(f"{ROOT}/configs/{method}.py:{recipe}")
    config.model.dtype = "bfloat16"
    config.data.batch_size = batch_size
    pairs = [one.partition("=")[::2] for one in set.split(",") if one]
    check_overrides(config, [f"--config.{key}={text}" for key, text in pairs])
    for key, text in pairs:
        group, name = key.split(".")
        kind = type(config[group][name])
        config[group][name] = text.lower() in ("true", "1", "t") if kind is bool else kind(text)
    check_pretraining(config)
    return resolve(config)


def numbers_in_norms(params, batch_stats=None) -> int:
    """Numbers in the scales and biases of normalisations, or of those with running statistics."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    of_norms = [(path[:-1], x) for path, x in flat if is_norm(jax.tree_util.keystr(path))]
    if batch_stats is not None:
        with_statistics, _ = jax.tree_util.tree_flatten_with_path(batch_stats)
        modules = {path[:-1] for path, _ in with_statistics}
        of_norms = [(path, x) for path, x in of_norms if path in modules]
    return sum(x.size for _, x in of_norms)


def is_norm(name: str) -> bool:
    """Whether a path of parameters or operations leads into a normalisation: bn1, downsample_bn."""
    return bool(re.search(r"(?<=['/])\w*bn\d*(?=['/])", name))


def check(result: dict, formulas: dict[str, int], has_shards: bool) -> None:
    """Raises Failed where the formulas do not say what the module has.

    Args:
      result: of a point.
      formulas: float32 numbers that all-reduces sum, by part.
      has_shards: whether run.fsdp splits the state; nothing is sent for it otherwise.
    """
    found = Counter()
    for one in result["collectives"]:
        found[one["part"]] += one["bytes"] * (one["kind"] == "all-reduce")
    for part, numbers in formulas.items():
        if found[part] != 4 * numbers:
            raise Failed(f"{part}: the module has {found[part]} bytes, the formula {4 * numbers}")
    known = set(PARTS) - (set() if has_shards else {"state"})
    if unknown := set(found) - known:
        raise Failed(f"collectives outside of {', '.join(PARTS)}: {', '.join(sorted(unknown))}")


def formulas_of(config, experiment: Experiment, state: TrainState) -> dict[str, int]:
    """The float32 numbers that a step's all-reduces sum, by part.

    A BatchNorm's sums over all devices are a mean and a variance a view and branch in the forward
    pass, and two sums a view in the backward pass, of which its scale's and bias' gradients are
    made. Where each device's images are groups of their own, the running statistics and these two
    gradients are left; of other normalisations the two gradients alone are summed.
    """
    of_norms = numbers_in_norms(state.params)
    of_batch_norms = numbers_in_norms(state.params, state.batch_stats)
    of_view = size_of(state.batch_stats)
    forward, backward = experiment.num_sources * of_view, experiment.num_sources * of_view
    if experiment.has_target_pass:
        target = {name: state.batch_stats[name] for name in ("backbone", "projector")}
        forward += experiment.num_views * size_of(target)
    if config.model.bn_group_images:
        backward = of_batch_norms
    return {
        "gradient": size_of(state.params) - of_norms,
        "norm_forward": forward,
        "norm_backward": backward + of_norms - of_batch_norms,
    }


def collectives_of(text: str, devices: int) -> list[dict]:
    """Counts the collectives of a module by kind, part and group.

    Args:
      text: the compiled module, HLO.
      devices: that it was compiled for.

    Returns:
      The fields of Collective, one a kind, part and group.

    Raises:
      Failed: where one joins arrays of several parts, and their names cannot be told apart.
    """
    instruction = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-done)?\(")
    counts, sizes = Counter(), Counter()
    for line in text.splitlines():
        match = instruction.search(line)
        if not match:
            continue
        shapes, kind = match.groups()
        group = group_of(line, devices)
        arrays = [bytes_of(shape) for shape in re.findall(r"\w+\[[\d,]*\]", shapes)]
        names = re.search(r'op_name="([^"]*)"', line)
        parts = [part_of(name) for name in names_of(names[1] if names else "")]
        if len(set(parts)) == 1:
            parts = parts[:1] * len(arrays)
        if len(parts) != len(arrays):
            raise Failed(f"{len(arrays)} arrays of {len(parts)} parts: {line.strip()[:300]}")
        of_part = Counter()
        for part, size in zip(parts, arrays, strict=True):
            of_part[part] += size * (group if kind == "reduce-scatter" else 1)
        # One that joins several parts counts where most of its bytes are.
        counts[kind, of_part.most_common(1)[0][0], group] += 1
        for part, size in of_part.items():
            sizes[kind, part, group] += size
    return [
        Collective(*key, count=counts[key], bytes=sizes[key])._asdict() for key in sorted(sizes)
    ]


def group_of(line: str, devices: int) -> int:
    """Devices that take part in one collective, from its line of HLO."""
    if "source_target_pairs=" in line:
        return 2
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    if table := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(table[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    return devices


def names_of(name: str) -> list[str]:
    """The names that XLA has joined in one: "a/(b:c)/d" is a/b/d and a/c/d."""
    for match in re.finditer(r"(?:^|(?<=/))\(", name):
        depth, starts = 0, [match.end()]
        for place in range(match.start(), len(name)):
            depth += {"(": 1, ")": -1}.get(name[place], 0)
            if depth == 1 and name[place] == ":":
                starts.append(place + 1)
            if depth == 0:
                break
        ends = [start - 1 for start in starts[1:]] + [place]
        before, after = name[: match.start()], name[place + 1 :]
        pieces = [name[start:end] for start, end in zip(starts, ends, strict=True)]
        return [one for piece in pieces for one in names_of(f"{before}{piece}{after}")]
    return [name]


def part_of(name: str) -> str:
    """The part of the step that an operation belongs to, by the name that JAX gave it."""
    is_backward = "transpose(" in name
    if "/cond/" in name:
        return "figures"
    if is_norm(name):
        return "norm_backward" if is_backward else "norm_forward"
    if "Siamese" in name:
        return "gradient" if is_backward else "forward"
    return "loss" if "jvp(" in name else "state"


class Growth(NamedTuple):
    """How the counts of one method on one number of devices grow with the images a device.

    Attributes:
      devices: how many.
      bytes: by kind and part, (bytes at none, bytes an image of the whole batch).
      counts: by kind and part.
      flops: of a device, (at none, an image of its own, that times an image of the whole batch).
      backward_share: of the operations.
    """

    devices: int
    bytes: dict[tuple[str, str], tuple[float, float]]
    counts: dict[tuple[str, str], int]
    flops: tuple[float, float, float]
    backward_share: float


def growth_of(counts: list[dict], devices: int) -> Growth:
    """Says from small modules how large ones grow, and checks it against a large one.

    The two batches on the fewest devices give the growth: bytes are a constant and a share that
    grows with the whole batch, operations are a constant and a share that grows with a device's
    images. In a loss that compares all images with one another, they also grow with a device's
    images times all images: that much more are those on the most devices.

    Args:
      counts: of one method.
      devices: how many; one batch on so many has to be among the counts.

    Returns:
      The growth.

    Raises:
      Failed: where the module of so many devices is more than a hundredth off.
    """
    fewest = min(one["devices"] for one in counts)
    small = sorted(
        (one for one in counts if one["devices"] == fewest), key=lambda one: one["batch"]
    )
    if len(small) < 2:
        raise Failed(f"{fewest} devices: needs the counts of two batches, has {len(small)}")
    low, high = small[0], small[-1]
    step = fewest * (high["batch"] - low["batch"])
    here = next(one for one in counts if one["devices"] == devices)
    keys = {(one["kind"], one["part"]) for one in here["collectives"]}
    lines, numbers = {}, {}
    for key in sorted(key for key in keys if key[1] != "figures"):
        slope = (of_key(high, key)[1] - of_key(low, key)[1]) / step
        constant = of_key(low, key)[1] - slope * fewest * low["batch"]
        lines[key], numbers[key] = (constant, slope), of_key(here, key)[0]
    most = max(
        (one for one in counts if one["batch"] == low["batch"]), key=lambda one: one["devices"]
    )
    joined = 0.0
    if most["devices"] > fewest:
        joined = (most["flops"] - low["flops"]) / (most["devices"] - fewest) / low["batch"] ** 2
    squares = fewest * (high["batch"] ** 2 - low["batch"] ** 2)
    own = (high["flops"] - low["flops"] - joined * squares) / (high["batch"] - low["batch"])
    constant = low["flops"] - own * low["batch"] - joined * fewest * low["batch"] ** 2
    flops = constant, own, joined
    growth = Growth(devices, lines, numbers, flops, here["backward_share"])
    check_growth(growth, here)
    return growth


def of_key(result: dict, key: tuple[str, str]) -> tuple[int, int]:
    """Count and bytes of the collectives of one kind and part."""
    found = [one for one in result["collectives"] if (one["kind"], one["part"]) == key]
    return sum(one["count"] for one in found), sum(one["bytes"] for one in found)


def of_part(result: dict, part: str) -> tuple[int, int]:
    """Count and bytes of the collectives of one part."""
    found = [one for one in result["collectives"] if one["part"] == part]
    return sum(one["count"] for one in found), sum(one["bytes"] for one in found)


def check_growth(growth: Growth, one: dict) -> None:
    """Raises Failed where a count lies more than a hundredth off the growth."""
    pairs = {"operations": (flops_of(growth, one["batch"]), one["flops"])}
    for key in growth.bytes:
        pairs[f"{key[0]} bytes of {key[1]}"] = (
            bytes_at(growth, key, one["batch"]),
            of_key(one, key)[1],
        )
    for what, (predicted, found) in pairs.items():
        if abs(predicted - found) > max(0.01 * found, 1024):
            raise Failed(
                f"{what} of {one['method']} on {one['devices']} devices, {one['batch']} images "
                f"each: {found}, where fewer devices say {predicted:.0f}"
            )


def bytes_at(growth: Growth, key: tuple[str, str], batch: int) -> float:
    """Bytes of the collectives of one kind and part."""
    constant, slope = growth.bytes[key]
    return constant + slope * growth.devices * batch


def flops_of(growth: Growth, batch: int) -> float:
    """Operations of one device's step."""
    constant, own, joined = growth.flops
    return constant + own * batch + joined * batch * growth.devices * batch


def seconds_of(
    kind: str, size: float, number: int, hardware: Slice, hop: float
) -> tuple[float, float]:
    """Seconds that collectives over a whole slice take.

    Args:
      kind: one of growth.COLLECTIVES.
      size: bytes of the whole arrays, of all of them together.
      number: how many they are.
      hardware: the slice.
      hop: seconds of latency a link.

    Returns:
      (seconds by bandwidth, seconds by latency).

    Source: Austin et al., How to Scale Your Model, "Sharded matrices": an all-gather takes V / W,
    an all-reduce is two of them; with n chips each moves (n - 1) / n of the array.
    """
    passes = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}[kind]
    share = (hardware.chips - 1) / hardware.chips
    return passes * share * size / hardware.bandwidth, passes * number * hardware.hops * hop


def times_of(growth: Growth, hardware: Slice, batch: int, utilization: float, hop: float) -> dict:
    """Predicted seconds of one step.

    Args:
      growth: of the method on so many devices.
      hardware: the slice.
      batch: images a device.
      utilization: share of the peak that the operations reach.
      hop: seconds of latency a link.

    Returns:
      bandwidth, latency and compute; hidden, the collectives that may run beside the backward pass;
      exposed, all others; backward, its compute.
    """
    times = dict.fromkeys(("bandwidth", "latency", "hidden", "exposed"), 0.0)
    for kind, part in growth.bytes:
        size, number = bytes_at(growth, (kind, part), batch), growth.counts[kind, part]
        pair = seconds_of(kind, size, number, hardware, hop)
        times["bandwidth"] += pair[0]
        times["latency"] += pair[1]
        times["hidden" if part in HIDDEN else "exposed"] += sum(pair)
    compute = flops_of(growth, batch) / (hardware.peak * utilization)
    return times | {"compute": compute, "backward": growth.backward_share * compute}


def predict(
    growth: Growth, hardware: Slice, batch: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """The figures of one line of the table."""
    hop = 1e-6 * arguments.hop_microseconds
    times = functools.partial(
        times_of, growth, hardware, utilization=arguments.utilization, hop=hop
    )
    here = times(batch=batch)
    hides = smallest(lambda one: one["hidden"] <= one["backward"], times)
    less = smallest(lambda one: one["bandwidth"] + one["latency"] < one["compute"], times)
    tenth = smallest(lambda one: one["exposed"] < 0.1 * one["compute"], times)
    return {
        "chips": hardware.chips,
        "bytes": round(sum(bytes_at(growth, key, batch) for key in growth.bytes)),
        "collectives": sum(growth.counts.values()),
        **{f"{name}_seconds": seconds for name, seconds in here.items()},
        "batch_gradient_hides": hides,
        "batch_less_than_compute": less,
        "batch_exposed_tenth": tenth,
    }


def smallest(holds, times) -> int | None:
    """The smallest number of images a device from which on `holds`, or None where it never does."""
    if not holds(times(batch=LARGEST_BATCH)):
        return None
    low, high = 0, LARGEST_BATCH  # does not hold, holds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(times(batch=middle)) else (middle, high)
    return high


def table_of_counts(counts: list[dict]) -> Table:
    """One row a method and number of devices: MB and number of collectives by part."""
    batch = counts[0]["batch"]
    title = f"collectives of a step, {batch} images a device: MB (number)"
    table = Table("method", "devices", title=title, box=box.MARKDOWN)
    parts = [part for part in PARTS if any(of_part(one, part)[0] for one in counts)]
    for part in parts:
        table.add_column(part.replace("_", " "))
    table.add_column("GFLOP")
    table.add_column("GB temporary")
    for one in counts:
        cells = []
        for part in parts:
            number, size = of_part(one, part)
            cells.append(f"{size / 1e6:,.1f} ({number})")
        rest = f"{one['flops'] / 1e9:,.0f}", f"{one['temporary_bytes'] / 1e9:.1f}"
        table.add_row(one["method"], str(one["devices"]), *cells, *rest)
    return table


def table_of_predictions(predictions: list[dict], batch: int) -> Table:
    """One row a method and slice."""
    title = f"predicted, not run: a step of {batch} images a chip, and the least images a chip"
    columns = ("MB", "collectives", "bandwidth ms", "latency ms", "exposed ms", "compute ms")
    batches = ("gradient hides", "all < compute", "exposed < 10 %")
    table = Table("method", "slice", "chips", *columns, *batches, title=title, box=box.MARKDOWN)
    for one in predictions:
        keys = ("bandwidth", "latency", "exposed", "compute")
        times = [f"{1e3 * one[f'{key}_seconds']:.1f}" for key in keys]
        least = [
            "never" if one[key] is None else f"{one[key]:,} ({one[key] * one['chips']:,})"
            for key in ("batch_gradient_hides", "batch_less_than_compute", "batch_exposed_tenth")
        ]
        numbers = f"{one['bytes'] / 1e6:,.0f}", str(one["collectives"])
        table.add_row(one["method"], one["slice"], str(one["chips"]), *numbers, *times, *least)
    return table


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"error: {error}")
