"""Compiles the train step for slices of TPUs, and writes the tables of docs/scaling.md.

    pip install 'gsg_jax[tpu-compile]'
    python benchmarks/scaling.py [--jobs=2] [--output=docs/scaling.md]

The figures are kept beside the page, in scaling.json. A point that is there is not compiled again:
delete it when the step has changed. All of it takes about 8 hours of one processor core; with
--no_compile the tables are made from what there is. tpu.py compiles, and says what is counted.
"""

import argparse
import concurrent.futures
import functools
import pathlib
from typing import Any, NamedTuple

from tpu import COLUMNS, Known, NotCompiled, cells, largest

from gsg_jax.methods import METHODS

PLAIN_AND_GUIDED = ("simsiam", "byol", "simsiam_gsg", "byol_gsg")
SMALL_AND_LARGE = ("v5e:2x4", "v5e:16x16")
SLICES = ("v4:2x2x2", "v5e:2x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v6e:2x4", "v6e:16x16")
SAVINGS = ("", "optim.num_microbatches=2", "model.recompute=true")
END = "<!-- until here -->"


class Table(NamedTuple):
    """A table of the page.

    Attributes:
      points: one a row.
      names: keys of a point that its first columns show.
      num_columns: how many of tpu.py's columns follow.
      fits: whether a row is of the most images that fit, instead of the point's.
    """

    points: list[dict[str, Any]]
    names: tuple[str, ...] = ("slice", "method")
    num_columns: int = len(COLUMNS)
    fits: bool = False


def step(name: str, method: str, setting: str = "") -> dict[str, Any]:
    """The step of a method on a slice: recipe imagenet, 32 images a chip."""
    return {
        "slice": name,
        "method": method,
        "recipe": "imagenet",
        "images": 32,
        "fsdp": 1,
        "set": [setting] if setting else [],
    }


TABLES = {
    "methods": Table([step(name, method) for name in SMALL_AND_LARGE for method in METHODS]),
    "slices": Table([step(name, method) for name in SLICES for method in PLAIN_AND_GUIDED]),
    # Loops are counted once, so that with microbatches only the memory is right.
    "memory": Table(
        [step("v5e:2x4", "simsiam_gsg", setting) for setting in SAVINGS],
        names=("set", "images"),
        num_columns=1,
        fits=True,
    ),
}


def main() -> None:
    """Compiles what is missing, then replaces the marked parts of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="points that compile at a time")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("docs/scaling.md"))
    parser.add_argument("--no_compile", action="store_true", help="only from what is known")
    arguments = parser.parse_args()
    page = arguments.output.read_text()
    if absent := [name for name in TABLES if begin(name) not in page]:
        parser.error(f"--output={arguments.output}: needs the line {begin(absent[0])}")
    known = Known(arguments.output.with_suffix(".json"), compiles=not arguments.no_compile)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as threads:
        for table in TABLES.values():
            list(threads.map(functools.partial(row, known, table), table.points))
    arguments.output.write_text(filled_in(page, known))


def begin(name: str) -> str:
    """The line of the page after which a table stands."""
    return f"<!-- made by benchmarks/scaling.py: {name} -->"


def filled_in(page: str, known: Known) -> str:
    """The page with every table made anew from the figures."""
    for name, table in TABLES.items():
        columns = *table.names, *COLUMNS[: table.num_columns]
        rule = ["---"] * len(table.names) + ["--:"] * table.num_columns
        lines = [columns, rule, *(row(known, table, point) for point in table.points)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        before, _, rest = page.partition(begin(name))
        page = f"{before}{begin(name)}\n\n{text}\n\n{END}{rest.partition(END)[2]}"
    return page


def row(known: Known, table: Table, point: dict[str, Any]) -> list[str]:
    """The texts of a table's row; compiles what is not known, if that is to be."""
    names = {**point, "set": " ".join(point["set"]) or "neither"}
    try:
        figures = largest(known.look, point) if table.fits else known.look(point)
        texts = cells(figures)[: table.num_columns]
        names["images"] = figures["images"]
    except NotCompiled:
        texts = ["not yet compiled", *[""] * (table.num_columns - 1)]
        names["images"] = ""
    return [*(str(names[name]) for name in table.names), *texts]


if __name__ == "__main__":
    main()
