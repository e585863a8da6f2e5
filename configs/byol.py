"""BYOL: predictions of one view follow an EMA target's projections of the other.

    python -m gsg_jax.main --config=configs/byol.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    71 s  k-NN 0.8118 ± 0.0019 (untrained 0.7802, pixels 0.8025)
    cifar10_small       255 s  k-NN 0.4175 ± 0.0041 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Other recipes: not
yet run.

Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "byol"
    if recipe.startswith("imagenet"):
        recipes.byol_views(config)
    return config
