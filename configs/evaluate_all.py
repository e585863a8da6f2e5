"""Every evaluation of one checkpoint, into DIR/evaluation.json and DIR/evaluation.md.

    python -m gsg_jax.main --config=configs/evaluate_all.py[:RECIPE] --config.pretrained=DIR

Recipes: default, imagenet (not yet run). DIR is the run's, or --workdir.

Source: the evaluations' own configs.
"""

from ml_collections import ConfigDict

from gsg_jax.config import evaluations as recipes


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.evaluations.RECIPES."""
    config = recipes.evaluation("evaluate_all", recipe)
    recipes.add_knn(config)
    recipes.add_few_label(config)
    recipes.add_probe(config)
    recipes.add_lbfgs(config)
    recipes.add_finetuning(config)
    recipes.add_transfer(config)
    return config
