"""SimCLR: each view finds the other view of its image among all views of the batch.

    python -m gsg_jax.main --config=configs/simclr.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    60 s  k-NN 0.8203 ± 0.0044 (untrained 0.7802, pixels 0.8025)
    cifar10_small       352 s  k-NN 0.5070 ± 0.0073 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC or Intel Xeon, best values of `sweep` (docs/methods.md). Other
recipes: not yet run.

Source: Chen et al., ICML 2020 (arXiv 2002.05709).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "simclr"
    config.method.update({"temperature": 0.2, "stop_gradient": False})
    return config
