"""SimSiam with guided stop-gradient: the closest views of two images become the sources.

    python -m gsg_jax.main --config=configs/simsiam_gsg.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    57 s  k-NN 0.8065 ± 0.0249 (untrained 0.7802, pixels 0.8025)
    cifar10_small       484 s  k-NN 0.4282 ± 0.0022 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). All 13 epochs of
default: 0.8235; fashion_mnist: 0.8672 (pixels 0.8437), docs/results.md. Other recipes: not yet run.

Source: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "simsiam_gsg"
    recipes.guided_pairs(config)
    return config
