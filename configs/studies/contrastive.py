"""Does SimSiam with guided stop-gradient beat methods that push images apart explicitly?

    gsg-jax study --study=contrastive --images=cifar10 --workdir=runs/contrastive

`simsiam_gsg` (the paper's permutation, four views) against SimCLR, MoCo v2, Barlow Twins, VICReg
and UniGrad: for as many epochs, and against twice as many of two views (`_long`), which are as
many views. Each method has the best value of the study `sweep`, and otherwise those of its paper,
which are for larger networks.

11 cells, 3 seeds. A seed of `cifar10_small` takes as long as 17 trainings of `simsiam`.

Source of the claim: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058).
"""

from gsg_jax.config import recipes
from gsg_jax.configs.studies.sweep import tuned
from gsg_jax.study import Cell, Study


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    config = recipes.pretraining(recipe)
    twice = {
        "run.num_epochs": 2 * config.run.num_epochs,
        "eval.knn_every_epochs": 2 * config.eval.knn_every_epochs,
    }
    cells = []
    for method in ("simsiam_gsg", "simclr", "moco_v2", "barlow_twins", "vicreg", "unigrad"):
        values = tuned(method, recipe)
        cells.append(Cell(method, f"{method}:{recipe}", values))
        if method != "simsiam_gsg":
            cells.append(Cell(f"{method}_long", f"{method}:{recipe}", values | twice))
    others = tuple(cell.name for cell in cells[1:])
    return Study([cells[0]._replace(against=others), *cells[1:]], seeds=(0, 1, 2))
