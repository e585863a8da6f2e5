"""SimCLR: each view finds its sibling among all other views of the batch.

    python -m gsg_jax.main --config=configs/simclr.py[:RECIPE] [--workdir=DIR]

Not yet run.

Source: Chen et al., ICML 2020 (arXiv 2002.05709).
"""

from ml_collections import ConfigDict

from gsg_jax import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Builds the config of a recipe, one of gsg_jax.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "simclr"
    config.method.update({"temperature": 0.2, "stop_gradient": False})
    return config
