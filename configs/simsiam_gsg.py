"""SimSiam with guided stop-gradient: the closest views of two images become the sources.

    python -m gsg_jax.main --config=configs/simsiam_gsg.py[:RECIPE] [--workdir=DIR]

    default        2 CPU cores   186 s    k-NN top-1 0.8235 (untrained 0.7802, pixels 0.8025)
    fashion_mnist  1 CPU core    1,990 s  k-NN top-1 0.8672 (untrained 0.7940, pixels 0.8437)

k 20. default: mean of the seeds 0, 1, 2, commit 68bf0fb, on cores shared with other work;
fashion_mnist: seed 0, commit 1a2923b. Other recipes: not yet run.

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
