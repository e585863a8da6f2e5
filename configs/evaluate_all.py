"""Every evaluation of one checkpoint, into DIR/evaluation.json and DIR/evaluation.md.

    python -m gsg_jax.main --config=configs/evaluate_all.py[:RECIPE] --config.pretrained=DIR

Recipes: default, imagenet (not yet run). DIR is the run's, or --workdir.

Source: the evaluations' own configs.
"""

from ml_collections import ConfigDict

from gsg_jax.config.evaluations import evaluation


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.evaluations.RECIPES."""
    return evaluation("evaluate_all", recipe)
