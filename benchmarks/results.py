"""Pretrains methods with several seeds: one table of k-NN and few-label accuracy.

    python benchmarks/results.py [--recipe=default] [--seeds=0,1,2] [--methods=simsiam,byol]
        [--workdir=runs/results] [--output=docs/results.md]

Each run is in WORKDIR/RECIPE/METHOD-SEED. An unfinished run is resumed, a finished one is read. The
first rows are raw pixels and the untrained encoder. The table replaces the marked part of --output.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np

METHODS = ("simsiam", "simsiam_gsg", "byol", "byol_gsg")
# Columns, and the figures of the run's last line that they hold.
FIGURES = {
    "k-NN": "knn_top1",
    "1 label a class": "few_label_1",
    "5 labels": "few_label_5",
    "10 labels": "few_label_10",
}
BEGIN, END = "<!-- made by benchmarks/results.py -->", "<!-- until here -->"


def main() -> None:
    """Runs what is missing, then prints the table and writes it to --output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="default", help="recipe of the configs")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, comma-separated")
    parser.add_argument("--workdir", default="runs/results", help="where the runs go")
    parser.add_argument("--output", default="", help="file whose marked part gets the table")
    arguments = parser.parse_args()
    seeds, methods = arguments.seeds.split(","), arguments.methods.split(",")
    output = pathlib.Path(arguments.output) if arguments.output else None
    if output and not {BEGIN, END} <= set(output.read_text().splitlines()):
        parser.error(f"--output={output}: needs the lines {BEGIN} and {END}")

    runs = pathlib.Path(arguments.workdir) / arguments.recipe
    trained = {
        (method, seed): pretrain(method, seed, arguments.recipe, runs / f"{method}-{seed}")
        for seed in seeds
        for method in methods
    }
    lines = ["| encoder | " + " | ".join(FIGURES) + " | training, s |", "|---" * 6 + "|"]
    for encoder, method in rows(methods):
        suffix = "" if encoder == "pretrained" else f"_{encoder}"
        runs_of_row = [trained[method, seed] for seed in seeds]
        cells = [spread([run[name + suffix] for run in runs_of_row]) for name in FIGURES.values()]
        seconds = [run["train_seconds"] for run in runs_of_row]
        is_trained = encoder == "pretrained"
        time = f"{np.mean(seconds):.0f}" if is_trained else "-"
        lines.append(f"| {method if is_trained else encoder} | {' | '.join(cells)} | {time} |")
    text = "\n".join([*lines, "", provenance(arguments)])
    print(text)
    if output:
        before, _, rest = output.read_text().partition(BEGIN)
        output.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def rows(methods: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (encoder, method) of each row; the baselines come from the first method's runs."""
    yield "pixels", methods[0]
    yield "untrained", methods[0]
    yield from (("pretrained", method) for method in methods)


def pretrain(method: str, seed: str, recipe: str, folder: pathlib.Path) -> dict:
    """Pretrains or resumes a run; returns its last line."""
    return run_job(
        f"--config=configs/{method}.py:{recipe}",
        f"--workdir={folder}",
        f"--config.run.seed={seed}",
    )


def run_job(*flags: str) -> dict:
    """Runs or resumes a pretraining in a separate process; returns its last line."""
    command = [sys.executable, "-m", "gsg_jax.main", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(flags)} ended with {done.returncode}; the reason is above")
    figures = json.loads(done.stdout.splitlines()[-1])
    if figures["step"] < figures["num_steps"]:
        sys.exit(f"stopped in {' '.join(flags)}: the same command resumes")
    return figures


def spread(shares: list[float]) -> str:
    """Formats the mean and sample standard deviation over the seeds, percent."""
    percents = 100 * np.array(shares)
    deviation = f" ± {np.std(percents, ddof=1):.2f}" if len(percents) > 1 else ""
    return f"{np.mean(percents):.2f}{deviation}"


def provenance(arguments: argparse.Namespace) -> str:
    """Describes how the table was made."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    device = jax.devices()[0]
    return (
        f"Percent of the test images, mean ± standard deviation over the seeds {arguments.seeds}. "
        f"Recipe {arguments.recipe}, commit {git.stdout.strip() or 'unknown'}, jax "
        f"{jax.__version__}, Python {platform.python_version()}, {len(jax.devices())} "
        f"{device.device_kind} device(s), {os.cpu_count()} CPU cores."
    )


if __name__ == "__main__":
    main()
