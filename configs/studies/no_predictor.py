"""Does guided stop-gradient keep SimSiam and BYOL from collapsing without a predictor?

    gsg-jax study --study=no_predictor --images=cifar10 --workdir=runs/no_predictor

Both methods, plain and guided (the paper's permutation, four views), with `method.predictor=none`,
for the whole length of the recipe. A collapse shows in the rank of the embeddings and the
deviation of the projections before it shows in the score, which may stay near that of the
untrained encoder: see the charts of both.

4 cells, 3 seeds. A seed of `cifar10_small` takes as long as 7 trainings of `simsiam`. Not yet run.

Source of the claim: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058).
"""

from gsg_jax.study import Cell, Study

# For cifar10_small, not yet tuned: rates of the first pilots. The study `sweep` tunes them.
TUNED = {
    "simsiam": {"optim.learning_rate": 0.4},
    "simsiam_gsg": {"optim.learning_rate": 0.4},
    "byol": {"optim.learning_rate": 0.4},
    "byol_gsg": {"optim.learning_rate": 0.4},
}


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study; other recipes than cifar10_small have their own rates."""
    cells = []
    for method, tuned in TUNED.items():
        plain = method.removesuffix("_gsg")
        overrides = (tuned if recipe == "cifar10_small" else {}) | {"method.predictor": "none"}
        against = (plain,) if method != plain else ()
        cells.append(Cell(method, f"{method}:{recipe}", overrides, against))
    return Study(cells, seeds=(0, 1, 2))
