"""Barlow Twins: the cross-correlation of two views becomes the identity.

    python -m gsg_jax.main --config=configs/barlow_twins.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    61 s  k-NN 0.8083 ± 0.0238 (untrained 0.7802, pixels 0.8025)
    cifar10_small       347 s  k-NN 0.4299 ± 0.0205 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC or Intel Xeon, best values of `sweep` (docs/methods.md). Other
recipes: not yet run.

Source: Zbontar et al., ICML 2021 (arXiv 2103.03230).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "barlow_twins"
    config.method.update({"off_diagonal_weight": 5e-3, "stop_gradient": False})
    if config.optim.name == "sgd":  # the loss is a sum over channels
        config.optim.learning_rate *= 0.5 / config.model.projector_width
    return config
