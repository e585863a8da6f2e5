"""Fine-tuning of all weights on some or all of the labels.

    python -m gsg_jax.main --config=configs/finetune.py[:RECIPE] --config.pretrained=DIR

Recipes: default, imagenet (not yet run). --config.labels is the share of the labels; the
learning rates are chosen on a part of it.

Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733), appendix C.
"""

from ml_collections import ConfigDict

from gsg_jax.config.evaluations import evaluation


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.evaluations.RECIPES."""
    return evaluation("finetune", recipe)
