"""A linear classifier on a frozen backbone, or on the embeddings of a features job.

    python -m gsg_jax.main --config=configs/linear.py[:RECIPE] --config.pretrained=DIR

Recipes: default, imagenet. Protocols: "probe" trains a grid of probes on embeddings at once;
"lbfgs" solves logistic regression on them; "images" trains on crops of the images (LARS, 90 epochs;
the imagenet recipe is that of the papers: batch 4096, not yet run).

Source: Chen & He, CVPR 2021 (arXiv 2011.10566), appendix A.
"""

from ml_collections import ConfigDict

from gsg_jax.config.evaluations import evaluation


def get_config(recipe: str = "default") -> ConfigDict:
    """Returns the config of a recipe, one of gsg_jax.config.evaluations.RECIPES."""
    return evaluation("linear", recipe)
