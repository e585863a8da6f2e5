"""SimSiam: predictions of one view follow the projections of the other, under stop-gradient.

Source: Chen & He, CVPR 2021 (arXiv 2011.10566).
"""

from ml_collections import ConfigDict

from gsg_jax import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Builds the config of a recipe: default, fashion_mnist, cifar10, imagenet or folder."""
    config = recipes.pretraining(recipe)
    config.method.name = "simsiam"
    return config
