"""SimDINO: views follow an EMA target, and a coding rate keeps the rows of a batch apart.

    python -m gsg_jax.main --config=configs/simdino.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    2 CPU cores    186 s    k-NN top-1 0.8235 (untrained 0.7795, pixels 0.8025)

Seed 0, k 20, on cores shared with other work. The other recipes: not yet run.

Source: Wu et al., ICML 2025 (arXiv 2502.10385).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.update({"name": "simdino", "coding_epsilon": 0.05})
    if recipe.startswith("imagenet"):
        config.method.update({"ema_decay": 0.996, "ema_schedule": "cosine"})
    config.model.update({"projector_end": "none", "projector_width": 256})
    return config
