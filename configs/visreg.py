"""VISReg: views agree, each channel varies by 1, and the shape is a Gaussian's.

    python -m gsg_jax.main --config=configs/visreg.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    56 s  k-NN 0.8188 ± 0.0121 (untrained 0.7802, pixels 0.8025)
    cifar10_small       399 s  k-NN 0.4726 ± 0.0230 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Other recipes: not
yet run.

Source: Wu, Balestriero & Levine (arXiv 2606.02572).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "visreg"
    config.method.update({"regularizer_weight": 0.6, "num_directions": 256, "stop_gradient": False})
    if recipe.startswith("imagenet"):
        config.method.update({"regularizer_weight": 0.9, "num_directions": 4096})
    config.model.update({"projector_end": "none", "projector_width": 128})
    return config
