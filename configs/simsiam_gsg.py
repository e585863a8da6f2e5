"""SimSiam with guided stop-gradient: the closest views of two images become the sources.

    python -m gsg_jax.main --config=configs/simsiam_gsg.py[:RECIPE] [--workdir=DIR]

    default        1 CPU core    340 s    k-NN top-1 0.8295 (untrained 0.7795, pixels 0.8025)
    fashion_mnist  1 CPU core    1,990 s  k-NN top-1 0.8672 (untrained 0.7940, pixels 0.8437)

Seed 0, k 20, commits bc52614 (on a core shared with other work) and 1a2923b. The other recipes:
not yet run.

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
