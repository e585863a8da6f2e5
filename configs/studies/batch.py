"""Does guided stop-gradient keep its gain, or gain more, at small batches?

    gsg-jax study --study=batch --images=cifar10 --workdir=runs/batch

SimSiam plain and guided (the paper's permutation, four views) with batches of 32, 128 and 512, for
as many epochs; each guided cell against the plain one of its batch. Rates are per 256 images, so
the rate of a step falls with the batch.

6 cells, 2 seeds. A seed of `cifar10_small` takes as long as 9 trainings of `simsiam`, or more:
small batches are slower.

Source of the claim: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058).
"""

from gsg_jax.config import recipes
from gsg_jax.configs.studies.sweep import tuned
from gsg_jax.study import Cell, Study

BATCHES = (32, 128, 512)


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    own = recipes.pretraining(recipe).data.batch_size
    cells = []
    for batch in BATCHES:
        suffix, change = ("", {}) if batch == own else (f"_{batch}", {"data.batch_size": batch})
        for method in ("simsiam", "simsiam_gsg"):
            against = (f"simsiam{suffix}",) if method == "simsiam_gsg" else ()
            overrides = tuned(method, recipe) | change
            cells.append(Cell(f"{method}{suffix}", f"{method}:{recipe}", overrides, against))
    return Study(cells, seeds=(0, 1))
