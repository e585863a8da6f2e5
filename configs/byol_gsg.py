"""BYOL with guided stop-gradient: the closest views of two images become the sources.

    python -m gsg_jax.main --config=configs/byol_gsg.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    71 s  k-NN 0.8033 ± 0.0174 (untrained 0.7802, pixels 0.8025)
    cifar10_small       567 s  k-NN 0.4296 ± 0.0113 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Other recipes: not
yet run.

Source: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "byol_gsg"
    if recipe.startswith("imagenet"):
        recipes.byol_views(config)  # as in byol.py, so that guidance alone differs
    recipes.guided_pairs(config)
    return config
