"""What does every method of the table score, each with its own swept values?

    gsg-jax study --study=methods --images=cifar10 --workdir=runs/methods

The fifteen methods, and UniGrad, DirectPred and SimDINO with guided sources besides (`_guided`),
for as many epochs. Each has the best values of the study `sweep`, if it was swept. A guided
row is compared with its plain one: `simsiam_gsg` and `byol_gsg` see four views of an image where
the others see two, so the study `gain` has the fairer question for them.

`methods:default` does the same on the embedded images, in two epochs. With the flag
`--config.eval.inspect_gradients=true` the runs log the parts of their gradients too.

18 cells, 3 seeds, all of them run, as are those of `default` (docs/methods.md). A seed of
`cifar10_small` takes as long as 21 trainings of `simsiam`. Cells that `gain` and `contrastive` have
too are the same runs.
"""

from gsg_jax.configs.studies.sweep import EPOCHS, ROWS, tuned
from gsg_jax.study import Cell, Study


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    length = {}
    if epochs := EPOCHS.get(recipe):
        length = {"run.num_epochs": epochs, "eval.knn_every_epochs": epochs}
    cells = []
    for row, (method, changes) in ROWS.items():
        plain = row.removesuffix("_guided").removesuffix("_gsg")
        against = (plain,) if plain != row else ()
        cells.append(
            Cell(row, f"{method}:{recipe}", changes | tuned(row, recipe) | length, against)
        )
    return Study(cells, seeds=(0, 1, 2))
