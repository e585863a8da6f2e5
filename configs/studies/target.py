"""Is it the momentum target that makes the difference, in all three families of methods?

    gsg-jax study --study=target --images=cifar10 --workdir=runs/target

UniGrad's table 3 in small: a contrastive method (SimCLR's loss), an asymmetric one (SimSiam's) and
a decorrelating one (Barlow Twins'), with a target branch that shares its weights, that is stopped,
and that is an exponential moving average. A method with its own target has no suffix. The claim:
within a family stopping changes little, and the momentum target is better. SimSiam with shared
weights is left out, since it collapses.

8 cells, 2 seeds. A seed of `cifar10_small` takes as long as 9 trainings of `simsiam`.

Source of the claim: Tao et al., CVPR 2022 (arXiv 2112.05141), table 3.
"""

from gsg_jax.configs.studies.sweep import tuned
from gsg_jax.study import Cell, Study

TARGETS = {
    "shared": {"method.target": "online", "method.stop_gradient": False},
    "stopped": {"method.target": "online", "method.stop_gradient": True},
    "momentum": {"method.target": "ema", "method.stop_gradient": True},
}
# {method: its own target}: the method as its config has it.
FAMILIES = {"simclr": "shared", "simsiam": "stopped", "barlow_twins": "shared"}


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    cells = []
    for method, own in FAMILIES.items():
        names: list[str] = []
        for target, changes in TARGETS.items():
            if (method, target) == ("simsiam", "shared"):
                continue
            name = method if target == own else f"{method}_{target}"
            overrides = tuned(method, recipe) | ({} if target == own else changes)
            cells.append(Cell(name, f"{method}:{recipe}", overrides, tuple(names)))
            names.append(name)
    return Study(cells, seeds=(0, 1))
