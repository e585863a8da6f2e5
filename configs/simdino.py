"""SimDINO: views follow an EMA target, and a coding rate keeps the rows of a batch apart.

    python -m gsg_jax.main --config=configs/simdino.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    69 s  k-NN 0.8313 ± 0.0115 (untrained 0.7802, pixels 0.8025)
    cifar10_small       427 s  k-NN 0.4168 ± 0.0227 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Others: not yet run.

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
