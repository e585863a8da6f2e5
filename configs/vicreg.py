"""VICReg: views agree; channels vary and are uncorrelated.

    python -m gsg_jax.main --config=configs/vicreg.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    60 s  k-NN 0.8205 ± 0.0118 (untrained 0.7802, pixels 0.8025)
    cifar10_small       336 s  k-NN 0.4533 ± 0.0171 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC or Intel Xeon, best values of `sweep` (docs/methods.md). Other
recipes: not yet run.

Source: Bardes et al., ICLR 2022 (arXiv 2105.04906).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "vicreg"
    config.method.update(
        {
            "invariance_weight": 25.0,
            "variance_weight": 25.0,
            "covariance_weight": 1.0,
            "stop_gradient": False,
        }
    )
    config.model.projector_end = "none"
    if config.optim.name == "sgd":  # the gradient is about a hundred times that of a cosine
        config.optim.learning_rate *= 0.01
    return config
