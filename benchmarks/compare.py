"""Pretrains with every method for the same number of epochs, and prints two tables.

    python benchmarks/compare.py [--recipe=default] [--epochs=3] [--methods=simclr,unigrad]
        [--workdir=runs/compare]

Each method is a run in WORKDIR/RECIPE-EPOCHS/METHOD. An unfinished run is resumed, a finished one
is read. The first table holds k-NN top-1 (percent), also of the untrained encoder, the collapse
figures of the last logged step, and the seconds of training. The second holds what the gradient
inspector logged at that step (docs/methods.md defines its figures).
"""

import argparse
import pathlib

from results import run_job
from rich.console import Console
from rich.table import Table

from gsg_jax.methods import METHODS
from gsg_jax.run.files import read_lines

COLUMNS = ("method", "k-NN", "untrained", "std x sqrt(D)", "rank", "seconds")
# Columns of the second table, and the figures they hold.
GRADIENT_COLUMNS = {
    "positive": "positive_gradient",
    "negative": "negative_gradient",
    "balance": "gradient_balance",
    "cosine": "gradient_cosine",
    "alike, same": "positive_similarity",
    "alike, others": "negative_similarity",
    "channels": "channel_correlation",
}


def main() -> None:
    """Runs the methods, then prints the tables to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="default", help="recipe of the configs")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, comma-separated")
    parser.add_argument("--workdir", default="runs/compare", help="where the runs go")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        parser.error(f"--methods={unknown[0]}: take from {', '.join(METHODS)}")
    if arguments.epochs < 1:
        parser.error(f"--epochs={arguments.epochs}: must be 1 or more")

    runs = pathlib.Path(arguments.workdir) / f"{arguments.recipe}-{arguments.epochs}"
    title = f"{arguments.epochs} epochs each, recipe {arguments.recipe}"
    table, gradients = Table(*COLUMNS, title=title), Table("method", *GRADIENT_COLUMNS)
    for method in methods:
        folder = runs / method
        figures = run_job(
            f"--config=configs/{method}.py:{arguments.recipe}",
            f"--workdir={folder}",
            f"--config.run.num_epochs={arguments.epochs}",
            f"--config.eval.knn_every_epochs={arguments.epochs}",
            "--config.eval.inspect_gradients=true",
        )
        logged = read_lines(folder / "metrics.jsonl")
        last = [line for line in logged if "embedding_rank" in line][-1]
        table.add_row(*row(method, figures, last))
        values = (f"{last[name]:.3g}" for name in GRADIENT_COLUMNS.values())
        gradients.add_row(method, *values)
    console = Console(width=100)
    console.print(table)
    console.print(gradients)


def row(method: str, figures: dict, last: dict) -> list[str]:
    """Returns a method's row of the first table."""
    return [
        method,
        f"{100 * figures['knn_top1']:.2f}",
        f"{100 * figures['knn_top1_untrained']:.2f}",
        f"{last['projection_std']:.2f}",
        f"{last['embedding_rank']:.1f}",
        f"{figures['train_seconds']:.0f}",
    ]


if __name__ == "__main__":
    main()
