"""SimSiam: predictions of one view follow the projections of the other, under stop-gradient.

    python -m gsg_jax.main --config=configs/simsiam.py[:RECIPE] [--workdir=DIR]

    default        1 CPU core    396 s    k-NN top-1 0.8355 (untrained 0.7525, pixels 0.8025)

Seed 0, k 20, 18 epochs, commit 1a2923b, when
`default` was another network. The `default` of today and the other recipes: not yet run.

Source: Chen & He, CVPR 2021 (arXiv 2011.10566).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "simsiam"
    return config
