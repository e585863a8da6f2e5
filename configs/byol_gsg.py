"""BYOL with guided stop-gradient: the closest views of two images become the sources.

    python -m gsg_jax.main --config=configs/byol_gsg.py[:RECIPE] [--workdir=DIR]

    default        1 CPU core    551 s    k-NN top-1 0.8410 (untrained 0.7525, pixels 0.8025)

Seed 0, k 20, 18 epochs, commit 1a2923b, when
`default` was another network. The `default` of today and the other recipes: not yet run.

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
