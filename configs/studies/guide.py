"""What makes guided stop-gradient work: which view pair guides, by which distances, in which pairs?

    gsg-jax study --study=guide --images=cifar10 --workdir=runs/guide

`simsiam_gsg` is the method: SimSiam with the paper's permutation, the closest of four view pairs,
and distances of raw projections. Each other cell changes one of them: the farthest pair or a random
one (half of SimSiam's gradient, without guidance); distances of normalised projections; each image
paired with the next one, or each half of the batch with the other half. The last two draw two
views of an image a step instead of four, so they do half the work in as many epochs.

6 cells, 3 seeds. A seed of `cifar10_small` takes as long as 10 trainings of `simsiam`. The results
are in docs/results.md.

Source: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058).
"""

from gsg_jax.configs.studies.sweep import tuned
from gsg_jax.study import Cell, Study

TWO_VIEWS = {"method.num_views": 2}


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    changes = {
        "simsiam_gsg": {},
        "random": {"method.guide": "random"},
        "farthest": {"method.guide": "farthest"},
        "normalised": {"method.distances": "normalised"},
        "roll": {"method.pairing": "roll", **TWO_VIEWS},
        "halves": {"method.pairing": "halves", **TWO_VIEWS},
    }
    config, values = f"simsiam_gsg:{recipe}", tuned("simsiam_gsg", recipe)
    cells = [Cell(name, config, values | change) for name, change in changes.items()]
    return Study(cells, seeds=(0, 1, 2), baseline="simsiam_gsg")
