"""Runs the benchmarks of speed and cost and prints one table of what they measured.

    python benchmarks/run_all.py [--size=full] [--only=input.py,knn.py]

"small" shortens each to about a minute on two CPU cores, to show that it runs; "full" takes each
benchmark's own sizes. Every figure is read from the JSON that a benchmark prints. If one fails, the
program prints what was measured until then, names the benchmark and ends with status 1.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from rich.console import Console
from rich.table import Table

# Flags of each benchmark, by size.
BENCHMARKS = {
    "step_time.py": {
        "small": ["--methods=simsiam_gsg", "--steps=5"],
        "full": [],
    },
    "startup.py": {
        "small": ["--starts=1"],
        "full": [],
    },
    "versus_torch.py": {
        "small": ["--methods=simsiam", "--rounds=2", "--batch=8", "--size=16", "--width=8"],
        "full": ["--modes=reference,channels_last,tuned"],
    },
    "knn.py": {
        "small": ["--bank=5000", "--queries=500", "--width=64", "--k=20", "--repeats=2"],
        "full": [],
    },
    "report.py": {
        "small": ["--images=300"],
        "full": [],
    },
    "input.py": {
        "small": [
            *("--images=32", "--size=96", "--batch=16", "--rounds=2"),
            *("--steps=3", "--recipe=default"),
        ],
        "full": [],
    },
}
# What distinguishes the lines of one benchmark.
NAMES = ("what", "config", "way", "method", "recipe", "batch", "views", "width", "devices", "k")


class Failed(Exception):
    """A benchmark ended with an error."""


def main() -> None:
    """Runs the benchmarks one after another, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "full"), default="full", help="how long")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="comma-separated")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        parser.error(f"--only={unknown[0]}: take from {', '.join(BENCHMARKS)}")
    table, failure = Table("benchmark", "of", "figure", "value"), None
    try:
        for name in chosen:
            print(f"{name} ...", file=sys.stderr, flush=True)
            for line in run(name, BENCHMARKS[name][arguments.size]):
                add_line(table, name, line)
    except Failed as error:
        failure = f"error: {error}"
    Console(width=120).print(table)
    sys.exit(failure)


def run(name: str, flags: list[str]) -> list[dict]:
    """Runs a benchmark; returns the JSON objects that it prints, or the results in them.

    Raises:
      Failed: if it ends with an error, or prints no line of JSON.
    """
    path = pathlib.Path(__file__).parent / name
    done = subprocess.run([sys.executable, path, *flags], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"{name} ended with {done.returncode}; the reason is above")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed(f"{name} printed no line of JSON")
    return [one for line in lines for one in line.get("results", [line])]


def add_line(table: Table, name: str, line: dict) -> None:
    """Adds a row for every number of a line."""
    of = ", ".join(named(key, line[key]) for key in NAMES if key in line)
    for figure, value in numbers(line).items():
        table.add_row(name.removesuffix(".py"), of, figure, f"{value:,.6g}")


def named(key: str, value: str | int) -> str:
    """Returns a text as it is, and a number with its name."""
    return value if isinstance(value, str) else f"{key} {value}"


def numbers(line: dict, prefix: str = "") -> dict[str, float]:
    """Returns the numbers of a line by dotted name, without those that name it."""
    found = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and (prefix or key not in NAMES):
            found[prefix + key] = value
    return found


if __name__ == "__main__":
    main()
