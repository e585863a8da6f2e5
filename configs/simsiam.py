"""SimSiam: predictions of one view follow the projections of the other, under stop-gradient.

    python -m gsg_jax.main --config=configs/simsiam.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    62 s  k-NN 0.8113 ± 0.0181 (untrained 0.7802, pixels 0.8025)
    cifar10_small       255 s  k-NN 0.4587 ± 0.0177 (untrained 0.2636, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Other recipes: not
yet run.

Source: Chen & He, CVPR 2021 (arXiv 2011.10566).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "simsiam"
    return config
