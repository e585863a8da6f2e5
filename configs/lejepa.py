"""LeJEPA: views agree, and their projections are spread as a standard Gaussian.

    python -m gsg_jax.main --config=configs/lejepa.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    61 s  k-NN 0.8170 ± 0.0094 (untrained 0.7802, pixels 0.8025)
    cifar10_small       442 s  k-NN 0.4941 ± 0.0075 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Other recipes: not
yet run.

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
