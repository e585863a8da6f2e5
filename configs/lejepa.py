"""LeJEPA: views agree, and their projections are spread as a standard Gaussian.

    python -m gsg_jax.main --config=configs/lejepa.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    2 CPU cores    128 s    k-NN top-1 0.8160 (untrained 0.7795, pixels 0.8025)

Seed 0, k 20, on cores shared with other work. The other recipes: not yet run.

Source: Balestriero & LeCun (arXiv 2511.08544).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "lejepa"
    config.method.update({"regularizer_weight": 0.05, "num_directions": 256})
    config.method.stop_gradient = False
    config.model.update({"projector_end": "none", "projector_width": 128})
    return config
