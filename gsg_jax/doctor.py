"""`gsg-jax doctor`: is this machine ready for a run, and if not, what must be fixed?

Prints a table on standard error, and one JSON object of the findings as the last line of standard
output. Exit status: 0 ready, 1 something would stop a run, 2 wrong usage. It needs no network.
"""

import argparse
import contextlib
import importlib.metadata
import math
import os
import pathlib
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.markup import escape
from rich.table import Table

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import resolve
from gsg_jax.config.recipes import pretraining
from gsg_jax.console import Parser, argument_path, last_line, shown, standard_error
from gsg_jax.data.tfds import prepared_names
from gsg_jax.devices.compile_cache import cache_folder
from gsg_jax.devices.hosts import PORT
from gsg_jax.devices.mesh import global_batch, make_mesh, replicated
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.state import init_state

PROGRAM = "gsg-jax doctor"
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets"),
    *("array-record", "ml-collections", "numpy", "pillow"),
)
# Device files, and the extra of this package that each needs.
ACCELERATORS = {"/dev/nvidia0": "cuda", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}
LEAST_DISK = 5 * 2**30  # bytes: several checkpoints of a ResNet-50
LEAST_MEMORY = 4 * 2**30  # bytes of the host
STEP_SECONDS = 2.0
GOOD, NOTE, BAD = "ok", "note", "STOP"
COLOURS = {GOOD: "green", NOTE: "yellow", BAD: "bold red"}


class Finding(NamedTuple):
    """What a check found.

    Attributes:
      state: GOOD, NOTE (a run works, but read the text) or BAD (a run would stop).
      text: for people, with the fix if there is one.
      figures: the same for programs.
    """

    state: str
    text: str
    figures: dict[str, Any]


def main(argv: list[str]) -> int:
    """Runs every check; returns the exit status."""
    arguments = parse(argv)
    checks: dict[str, Callable[[], Finding]] = {
        "versions": check_versions,
        "devices": check_devices,
        "memory": check_memory,
        "disk": partial(check_disk, arguments.workdir),
        "image sets": partial(check_image_sets, arguments.data_dir),
        "compilation cache": check_cache,
        "port": partial(check_port, arguments.port),
        "train step": check_step,
    }
    table = Table("check", "", "found", title="gsg_jax on this machine")
    findings = {}
    for name, check in checks.items():
        try:
            found = check()
        except Exception as error:  # a finding too, so that the other checks still run
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            found = Finding(BAD, text, {"error": text})
        findings[name] = found
        table.add_row(name, f"[{COLOURS[found.state]}]{found.state}[/]", escape(shown(found.text)))
    standard_error(soft_wrap=False).print(table)
    is_ready = all(found.state != BAD for found in findings.values())
    states = {name: {"state": found.state, **found.figures} for name, found in findings.items()}
    status = last_line({"job": "doctor", "ready": is_ready, **states})
    return status if is_ready else 1


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the flags."""
    parser = Parser(
        prog=PROGRAM,
        description=__doc__.splitlines()[0].split(": ", 1)[1].capitalize(),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", type=argument_path, metavar="DIR", default="runs", help="of runs (runs)"
    )
    parser.add_argument("--data_dir", metavar="DIR", default="", help="TFDS folder (TFDS's own)")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"of host 0 of several hosts ({PORT})"
    )
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.port <= 65535:
        parser.error(f"--port={arguments.port}: must be from 1 to 65535")
    return arguments


def check_versions() -> Finding:
    """Checks the packages that a run needs."""
    found, missing = {"python": platform.python_version()}, []
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        text = f"missing: {', '.join(missing)}; install gsg_jax again, with its dependencies"
        return Finding(BAD, text, found | {"missing": missing})
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding(GOOD, text, found)


def check_devices() -> Finding:
    """Checks that JAX sees the devices that the machine has."""
    devices = jax.devices()
    count, kind = len(devices), devices[0].device_kind
    figures = {"backend": jax.default_backend(), "kind": kind, "count": count}
    text = f"{count} x {kind} ({jax.default_backend()})"
    unseen = [extra for path, extra in ACCELERATORS.items() if pathlib.Path(path).exists()]
    if jax.default_backend() == "cpu" and unseen:
        advice = f"; the machine has an accelerator: pip install 'gsg_jax[{unseen[0]}]'"
        return Finding(NOTE, text + advice, figures)
    return Finding(GOOD, text, figures)


def check_memory() -> Finding:
    """Checks the memory of the host, and reports the first device's if JAX knows it."""
    figures = {"host_available": host_memory()}
    text = "unknown on the host"
    if figures["host_available"] is not None:
        text = f"{gib(figures['host_available'])} free on the host"
    statistics = jax.local_devices()[0].memory_stats() or {}
    if limit := statistics.get("bytes_limit"):
        figures["device_limit"] = limit
        text += f", {gib(limit)} a device"
    is_little = (figures["host_available"] or math.inf) < LEAST_MEMORY
    advice = "; use a small --config.data.batch_size and --config.model.width" if is_little else ""
    return Finding(NOTE if is_little else GOOD, text + advice, figures)


def host_memory() -> int | None:
    """Returns the bytes that programs may still use, as Linux reports them; None elsewhere."""
    with contextlib.suppress(FileNotFoundError):
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def check_disk(workdir: pathlib.Path) -> Finding:
    """Checks that runs can be written to their folder, and that it has room."""
    folder = workdir.resolve()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    figures = {"folder": str(there), "free": shutil.disk_usage(there).free}
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        text = f"{there} cannot be written ({error.strerror}): give another --workdir"
        return Finding(BAD, text, figures)
    text = f"{gib(figures['free'])} free in {there}"
    if figures["free"] < LEAST_DISK:
        return Finding(
            NOTE, f"{text}, which a few checkpoints fill: give another --workdir", figures
        )
    return Finding(GOOD, text, figures)


def check_image_sets(data_dir: str) -> Finding:
    """Lists the prepared TFDS sets; the embedded images are always there."""
    names = prepared_names(data_dir)
    if names:
        return Finding(GOOD, ", ".join(names), {"names": names})
    where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    text = f"none prepared in {where}; the embedded images and image folders need none"
    return Finding(GOOD, text, {"names": []})


def check_cache() -> Finding:
    """Checks where compiled programs are kept."""
    try:
        folder = jax.config.jax_compilation_cache_dir or str(cache_folder())
    except RuntimeError as error:  # the user has no home
        return Finding(NOTE, f"none ({error}): set JAX_COMPILATION_CACHE_DIR to a folder", {})
    if "://" in folder:
        return Finding(GOOD, folder, {"folder": folder})
    path = pathlib.Path(folder)
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        text = f"{folder} cannot be written: set JAX_COMPILATION_CACHE_DIR to another folder"
        return Finding(NOTE, text, {"folder": folder})
    size = sum(entry.stat().st_size for entry in path.glob("*") if entry.is_file())
    return Finding(GOOD, f"{folder}, {size / 2**20:,.0f} MiB", {"folder": folder, "bytes": size})


def check_port(port: int) -> Finding:
    """Checks that host 0 of several hosts could listen at this port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            text = f"{port} is taken ({error.strerror}): several hosts need another --port"
            return Finding(NOTE, text, {"port": port, "is_free": False})
    return Finding(GOOD, f"{port} is free", {"port": port, "is_free": True})


def check_step() -> Finding:
    """Trains a tiny network for two seconds."""
    start = time.perf_counter()
    losses = tiny_steps()
    first = next(losses)
    compile_seconds = time.perf_counter() - start
    start, steps, loss = time.perf_counter(), 0, first
    while not steps or time.perf_counter() - start < STEP_SECONDS:
        loss, steps = next(losses), steps + 1
    rate = steps / (time.perf_counter() - start)
    figures = {"first_step_seconds": round(compile_seconds, 1), "steps_per_second": round(rate, 1)}
    if not math.isfinite(loss):
        return Finding(BAD, f"the loss of a tiny network is {loss}", figures)
    text = f"first step after {compile_seconds:.1f} s, then {rate:,.0f} a second; loss {loss:.4f}"
    return Finding(GOOD, text, figures)


def tiny_steps() -> Iterator[float]:
    """Yields the losses of the real train step, with a one-stage network on noise images."""
    config = pretraining("default")
    config.method.name = "simsiam"
    config.model.update({"width": 8, "num_stages": 1})
    config.data.batch_size = 2 * jax.device_count()
    check_pretraining(config)
    config = resolve(config)
    mesh = make_mesh(config.data.batch_size)
    experiment = build_experiment(config, num_steps=10**6, steps_per_epoch=100)
    init = partial(init_state, experiment, 1)
    state = jax.jit(init, out_shardings=replicated(mesh))()
    shape = (config.data.batch_size // jax.process_count(), 28, 28, 1)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = global_batch(mesh, noise)
    step = jit_step(experiment, mesh)
    while True:
        state, metrics = step(state, images)
        yield float(metrics["loss"])


def gib(num_bytes: int) -> str:
    """Returns bytes as GiB for people."""
    return f"{num_bytes / 2**30:,.1f} GiB"
