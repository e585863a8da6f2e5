"""UniGrad: the gradient that the whole family of methods shares, in its simplest form.

    python -m gsg_jax.main --config=configs/unigrad.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    71 s  k-NN 0.8235 ± 0.0184 (untrained 0.7802, pixels 0.8025)
    cifar10_small       326 s  k-NN 0.4869 ± 0.0041 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC or Intel Xeon, best values of `sweep` (docs/methods.md). Other
recipes: not yet run.

Source: Tao et al., CVPR 2022 (arXiv 2112.05141).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "unigrad"
    config.method.update(
        {
            "form": "unigrad",
            "balance": 0.0,  # 0 = the form's own, 100 of "unigrad"
            "loss_scale": 0.0,  # 0 = the form's own, 1 of "unigrad"
            "temperature": 0.2,
            "eigenvalue_floor": 0.3,
            "correlation_decay": 0.99,
        }
    )
    if recipe.startswith("imagenet"):
        config.method.update({"ema_decay": 0.996, "ema_schedule": "cosine"})
        config.optim.warmup_epochs = max(config.optim.warmup_epochs, 5.0)
    return config
