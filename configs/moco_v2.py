"""MoCo v2: each view finds its sibling among a queue of earlier targets.

    python -m gsg_jax.main --config=configs/moco_v2.py[:RECIPE] [--workdir=DIR]

Not yet run.

Source: He et al., CVPR 2020 (arXiv 1911.05722); Chen et al. (arXiv 2003.04297).
"""

from ml_collections import ConfigDict

from gsg_jax import recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Builds the config of a recipe: default, fashion_mnist, cifar10, imagenet or folder."""
    config = recipes.pretraining(recipe)
    config.method.name = "moco_v2"
    config.method.update(
        {"temperature": 0.2, "queue_size": 65536 if recipe.startswith("imagenet") else 4096}
    )
    return config
