"""Does guided stop-gradient learn as well if the online branch sees only the sources?

    gsg-jax study --study=sources --images=cifar10 --workdir=runs/sources

`all` runs the online branch on all four views of an image, as the paper does; `selected` on the
two that become sources, which costs less: compare the curves over processor hours. The online
branch's BatchNorm then has the statistics of sources only, which makes it another method.

4 cells, 2 seeds. A seed of `cifar10_small` takes as long as 8 trainings of `simsiam`. Not yet run.

Source: this project.
"""

from gsg_jax.study import Cell, Study

# For cifar10_small, not yet tuned: rates of the first pilots. The study `sweep` tunes them.
TUNED = {
    "simsiam_gsg": {"optim.learning_rate": 0.4},
    "byol_gsg": {"optim.learning_rate": 0.4},
}


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study; other recipes than cifar10_small have their own rates."""
    cells = []
    for method, tuned in TUNED.items():
        for sources in ("all", "selected"):
            overrides = (tuned if recipe == "cifar10_small" else {}) | {"method.sources": sources}
            against = (f"{method}_all",) if sources == "selected" else ()
            cells.append(Cell(f"{method}_{sources}", f"{method}:{recipe}", overrides, against))
    return Study(cells, seeds=(0, 1))
