"""MoCo v2: each view finds the other view of its image among a queue of earlier targets.

    python -m gsg_jax.main --config=configs/moco_v2.py[:RECIPE] [--workdir=DIR]

    default, 2 epochs    93 s  k-NN 0.8202 ± 0.0180 (untrained 0.7802, pixels 0.8025)
    cifar10_small       571 s  k-NN 0.5093 ± 0.0067 (untrained 0.2637, pixels 0.3084)

Three seeds on a core of an AMD EPYC or Intel Xeon, best values of `sweep` (docs/methods.md). Other
recipes: not yet run.

Source: He et al., CVPR 2020 (arXiv 1911.05722); Chen et al. (arXiv 2003.04297).
"""

from ml_collections import ConfigDict

from gsg_jax.config import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.name = "moco_v2"
    is_imagenet = recipe.startswith("imagenet")
    queue_size = 65536 if is_imagenet else 512 if recipe == "folder" else 4096
    config.method.update({"temperature": 0.2, "queue_size": queue_size})
    if recipe == "imagenet":
        config.method.ema_decay = 0.999
    return config
