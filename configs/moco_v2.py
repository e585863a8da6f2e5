"""MoCo v2: each view finds the other view of its image among a queue of earlier targets.

    python -m gsg_jax.main --config=configs/moco_v2.py[:RECIPE] [--workdir=DIR]

    default, 3 epochs    2 CPU cores    80 s    k-NN top-1 0.8200 (untrained 0.7525, pixels 0.8025)

Seed 0, k 20, commit 80e21a2, when
`default` was another network. The `default` of today and the other recipes: not yet run.

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
