"""Which learning rate, weight decay and crops does each method want?

    gsg-jax study --study=sweep --images=cifar10 --workdir=runs/sweep

One method after another, the plain baseline first, and the same eight values for each: four rates;
two other weight decays and two other smallest crops at the rate of the method's config. A third of
the recipe's epochs (two of `default`), with the whole schedule in them; one seed. The other studies
take the best of each group: that is a choice by the test images of seed 0, the same for every
method, so differences of a few tenths of a point between two values mean nothing.

`--cells='simsiam_*'` sweeps some of the methods, `--cells='*_rate*'` the rates alone.

157 cells, one seed, all of them run; of `default` all rates.
"""

from typing import Any

from gsg_jax import get_config
from gsg_jax.config import recipes
from gsg_jax.study import Cell, Study

FACTORS = (0.5, 1, 2, 4)  # of the rate that a method's config has
AT_ITS_RATE = {
    "decay1e-4": {"optim.weight_decay": 1e-4},
    "decay2e-3": {"optim.weight_decay": 2e-3},
    "crop0.08": {"views.crop_area": (0.08, 1.0)},
    "crop0.4": {"views.crop_area": (0.4, 1.0)},
}
# Epochs of a run where they are not a third of the recipe's; those of the study `methods`, too.
EPOCHS = {"default": 2}
# More factors, where the best of the four is the least or the greatest: until one is worse.
MORE_FACTORS = {
    "cifar10_small": {
        **{"simclr": (0.25,), "barlow_twins": (16, 64, 256), "vicreg": (16, 64, 256)},
        **dict.fromkeys(("simdino", "simdino_guided", "dino"), (8, 16)),
    },
    "default": {
        **dict.fromkeys(("simsiam_gsg", "simclr", "unigrad", "twist"), (0.25,)),
        **{"directpred_guided": (0.25,), "moco_v2": (0.25, 0.125)},
        **{"barlow_twins": (16, 64, 256), "vicreg": (16, 64)},
        **{"byol": (8,), "dino": (8, 16)},
    },
}
# The best of each row (docs/results.md), unless its config has it.
TUNED = {
    "cifar10_small": {
        "simsiam": {"views.crop_area": (0.4, 1.0)},
        "simsiam_gsg": {"views.crop_area": (0.4, 1.0)},
        "byol": {"optim.learning_rate": 0.8},
        "byol_gsg": {"optim.learning_rate": 0.8},
        "simclr": {"optim.learning_rate": 0.2},
        "moco_v2": {"optim.learning_rate": 0.4},
        "barlow_twins": {"optim.learning_rate": 0.05},
        "vicreg": {"optim.learning_rate": 0.256},
        "unigrad": {"views.crop_area": (0.4, 1.0)},
        "unigrad_guided": {"views.crop_area": (0.4, 1.0)},
        "visreg": {"optim.learning_rate": 0.8},
        "simdino": {"optim.learning_rate": 3.2},
        "simdino_guided": {"optim.learning_rate": 3.2},
        "directpred": {"views.crop_area": (0.4, 1.0)},
        "directpred_guided": {"views.crop_area": (0.4, 1.0)},
        "dino": {"optim.learning_rate": 0.32},
    },
    "default": {
        row: {"optim.learning_rate": rate}
        for row, rate in {
            **{"simsiam": 0.8, "simsiam_gsg": 0.2, "byol": 1.6, "byol_gsg": 0.8, "simclr": 0.2},
            **{"moco_v2": 0.1, "barlow_twins": 0.000781, "vicreg": 0.016, "unigrad": 0.2},
            **{"dino": 0.32, "twist": 0.2, "simdino": 0.8, "directpred_guided": 0.2},
        }.items()
    },
}
# {row: (its config, what it changes in it)}: every method, and those with guided sources besides.
_METHODS = (
    *("simsiam", "simsiam_gsg", "byol", "byol_gsg"),
    *("simclr", "moco_v2", "barlow_twins", "vicreg", "unigrad"),
    *("directpred", "dino", "twist", "lejepa", "visreg", "simdino"),
)
_GUIDED = {"method.sources_by": "guided"}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {method: (method, {}) for method in _METHODS}
ROWS |= {f"{method}_guided": (method, _GUIDED) for method in ("unigrad", "directpred", "simdino")}


def get_study(recipe: str = "cifar10_small") -> Study:
    """Returns the study for a recipe."""
    epochs = EPOCHS.get(recipe, max(1, recipes.pretraining(recipe).run.num_epochs // 3))
    cells, more = [], MORE_FACTORS.get(recipe, MORE_FACTORS["cifar10_small"])
    for row, (method, changes) in ROWS.items():
        config = f"{method}:{recipe}"
        rate = get_config(config).optim.learning_rate
        factors = (*FACTORS, *more.get(row, ()))
        rates = [float(f"{factor * rate:.3g}") for factor in factors]
        values = {f"rate{rate}": {"optim.learning_rate": rate} for rate in rates} | AT_ITS_RATE
        length = {"run.num_epochs": epochs, "eval.knn_every_epochs": epochs}
        cells += [
            Cell(f"{row}_{name}", config, changes | value | length, group=row)
            for name, value in values.items()
        ]
    return Study(cells, is_sweep=True)


def tuned(row: str, recipe: str) -> dict[str, Any]:
    """What the other studies change in a row's config for a recipe; {} if it was not swept."""
    return TUNED.get(recipe, {}).get(row, {})
