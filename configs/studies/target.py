"""Is it the momentum target that makes the difference, in all three families of methods?

    gsg-jax study --study=target --images=cifar10 --workdir=runs/target

UniGrad's table 3 in small: a contrastive method (SimCLR's loss), an asymmetric one (SimSiam's) and
a decorrelating one (Barlow Twins'), with a target branch that shares its weights, that is stopped,
and that is an exponential moving average. The claim: within a family stopping changes little, and
the momentum target is better. SimSiam with shared weights is left out, since it collapses.

8 cells, 2 seeds. A seed of `cifar10_small` takes as long as 9 trainings of `simsiam`. Not yet run.

Source of the claim: Tao et al., CVPR 2022 (arXiv 2112.05141), table 3.
"""

from gsg_jax.configs.studies.sweep import tuned
from gsg_jax.study import Cell, Study

TARGETS = {
    "shared": {"method.target": "online", "method.stop_gradient": False},
    "stopped": {"method.target": "online", "method.stop_gradient": True},
    "momentum": {"method.target": "ema", "method.stop_gradient": True},
}


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    cells = []
    for method in ("simclr", "simsiam", "barlow_twins"):
        values = tuned(method, recipe)
        names = [name for name in TARGETS if (method, name) != ("simsiam", "shared")]
        for n, name in enumerate(names):
            against = tuple(f"{method}_{other}" for other in names[:n])
            overrides = values | TARGETS[name]
            cells.append(Cell(f"{method}_{name}", f"{method}:{recipe}", overrides, against))
    return Study(cells, seeds=(0, 1))
