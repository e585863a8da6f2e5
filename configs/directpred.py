"""DirectPred: the predictor in closed form, from the correlation of the targets.

    python -m gsg_jax.main --config=configs/directpred.py[:RECIPE] [--workdir=DIR]

    default, 3 epochs    2 CPU cores    85 s    k-NN top-1 0.8025 (untrained 0.7525, pixels 0.8025)

Seed 0, k 20, commit 80e21a2, when
`default` was another network. The `default` of today and the other recipes: not yet run.

Source: Tian et al., ICML 2021 (arXiv 2102.06810).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "directpred"
    config.method.update(
        {"correlation_decay": 0.99, "eigenvalue_floor": 0.3, "predictor_every_steps": 5}
    )
    return config
