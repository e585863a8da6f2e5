"""DINO: two views predict the same of many classes, against a sharpened, centred target.

    python -m gsg_jax.main --config=configs/dino.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    88 s  k-NN 0.8007 ± 0.0153 (untrained 0.7802, pixels 0.8025)
    cifar10_small       488 s  k-NN 0.3985 ± 0.0131 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC, best values of `sweep` (docs/methods.md). Other recipes: not
yet run.

Source: Caron et al., ICCV 2021 (arXiv 2104.14294).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "dino"
    config.method.update(
        {
            "temperature": 0.1,
            "target_temperature": 0.04,
            "first_target_temperature": 0.04,
            "temperature_warmup_steps": 0,
            "centre_momentum": 0.9,
        }
    )
    if config.optim.name == "sgd":  # the gradient grows by 1 / temperature
        config.optim.learning_rate *= config.method.temperature
    if recipe.startswith("imagenet"):
        config.method.update({"ema_decay": 0.996, "ema_schedule": "cosine"})
    config.model.num_prototypes = 65536 if recipe.startswith("imagenet") else 1024
    return config
