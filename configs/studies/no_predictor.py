"""Does guided stop-gradient keep SimSiam and BYOL from collapsing without a predictor?

    gsg-jax study --study=no_predictor --images=cifar10 --workdir=runs/no_predictor

Both methods, plain and guided (the paper's permutation, four views), with `method.predictor=none`,
for the whole length of the recipe. A collapse shows in the rank of the embeddings and the
deviation of the projections before it shows in the score, which may stay near that of the
untrained encoder: see the charts of both.

4 cells, 5 seeds, since the scores of collapsed runs differ much. A seed of `cifar10_small` takes as
long as 7 trainings of `simsiam`; a run whose numbers overflow ends early. The results are in
docs/results.md.

Source of the claim: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058).
"""

from gsg_jax.configs.studies.sweep import tuned
from gsg_jax.study import Cell, Study


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    cells = []
    for method in ("simsiam", "simsiam_gsg", "byol", "byol_gsg"):
        plain = method.removesuffix("_gsg")
        overrides = tuned(method, recipe) | {"method.predictor": "none"}
        against = (plain,) if method != plain else ()
        cells.append(Cell(method, f"{method}:{recipe}", overrides, against))
    return Study(cells, seeds=(0, 1, 2, 3, 4))
