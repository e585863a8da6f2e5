"""DirectPred: the predictor in closed form, from the correlation of the targets.

    python -m gsg_jax.main --config=configs/directpred.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    72 s  k-NN 0.8212 ± 0.0170 (untrained 0.7802, pixels 0.8025)
    cifar10_small       415 s  k-NN 0.4318 ± 0.0173 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Other recipes: not
yet run.

Source: Tian et al., ICML 2021 (arXiv 2102.06810).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "directpred"
    config.method.update(
        {"correlation_decay": 0.99, "eigenvalue_floor": 0.3, "predictor_every_steps": 5}
    )
    return config
