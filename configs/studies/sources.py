"""Does guided stop-gradient learn as well if the online branch sees only the sources?

    gsg-jax study --study=sources --images=cifar10 --workdir=runs/sources

The method runs the online branch on all four views of an image, as the paper does; `_selected` on
the two that become sources, which costs less: compare the curves over processor hours. The online
branch's BatchNorm then has the statistics of sources only, which makes it another method.

4 cells, 2 seeds. A seed of `cifar10_small` takes as long as 8 trainings of `simsiam`. The results
are in docs/results.md.

Source: this project.
"""

from gsg_jax.configs.studies.sweep import tuned
from gsg_jax.study import Cell, Study


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    cells = []
    for method in ("simsiam_gsg", "byol_gsg"):
        config, values = f"{method}:{recipe}", tuned(method, recipe)
        selected = values | {"method.sources": "selected"}
        cells += [
            Cell(method, config, values),
            Cell(f"{method}_selected", config, selected, against=(method,)),
        ]
    return Study(cells, seeds=(0, 1))
