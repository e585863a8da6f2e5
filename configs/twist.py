"""TWIST: twin class distributions, sharp for an image and diverse over a batch.

    python -m gsg_jax.main --config=configs/twist.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    54 s  k-NN 0.8098 ± 0.0313 (untrained 0.7802, pixels 0.8025)
    cifar10_small       349 s  k-NN 0.4371 ± 0.0078 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Other recipes: not
yet run.

Source: Wang et al. (arXiv 2110.07402).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "twist"
    config.method.update({"sharpness_weight": 1.0, "diversity_weight": 1.0, "stop_gradient": False})
    return config
