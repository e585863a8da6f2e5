"""BYOL: predictions of one view follow an EMA target's projections of the other.

    python -m gsg_jax.main --config=configs/byol.py[:RECIPE] [--workdir=DIR]

Every recipe: not yet run.

Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733).
"""

from ml_collections import ConfigDict

from gsg_jax import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Builds the config of a recipe: default, fashion_mnist, cifar10, imagenet or folder."""
    config = recipes.pretraining(recipe)
    config.method.name = "byol"
    if recipe == "imagenet":
        recipes.byol_views(config)
    return config
