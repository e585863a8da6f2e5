"""Does guided stop-gradient improve SimSiam and BYOL, at equal epochs and at equal work?

    gsg-jax study --study=gain --images=cifar10 --workdir=runs/gain

Guided stop-gradient with the paper's permutation draws four views of an image a step where the
plain method draws two. So there are two fair questions: `simsiam_gsg` against `simsiam` trains for
as many epochs, and against `simsiam_long`, which trains for twice as many, on as many views. The
same for BYOL. `simsiam_long` against `simsiam` says whether more training helps the plain method.

6 cells, 5 seeds. A seed of `cifar10_small` takes as long as 10 trainings of `simsiam`.
`gain:cifar10` is the paper's size, with a linear probe after each run: not yet run. The results of
`cifar10_small` are in docs/results.md.

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
    for plain in ("simsiam", "byol"):
        guided, longer = f"{plain}_gsg", f"{plain}_long"
        values = tuned(plain, recipe)
        cells += [
            Cell(plain, f"{plain}:{recipe}", values),
            Cell(guided, f"{guided}:{recipe}", tuned(guided, recipe), against=(plain, longer)),
            Cell(longer, f"{plain}:{recipe}", values | twice, against=(plain,)),
        ]
    evaluations = () if recipe == "cifar10_small" else ("linear",)
    return Study(cells, (0, 1, 2, 3, 4), baseline="simsiam", evaluations=evaluations)
