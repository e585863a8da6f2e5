"""BYOL: predictions of one view follow an EMA target's projections of the other.

    python -m gsg_jax.main --config=configs/byol.py[:RECIPE] [--workdir=DIR]

    default        1 CPU core    674 s    k-NN top-1 0.8290 (untrained 0.7525, pixels 0.8025)

Seed 0, k 20, 18 epochs, commit 1a2923b, when
`default` was another network. The `default` of today and the other recipes: not yet run.

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
