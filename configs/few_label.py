"""Accuracy with a few labelled images of every class, by logistic regression on embeddings.

    python -m gsg_jax.main --config=configs/few_label.py --config.pretrained=DIR

Ten draws of 1, 5 and 10 labelled images a class; mean and standard error on the test images.

Source: the protocol is this project's own: docs/evaluation.md.
"""

from ml_collections import ConfigDict

from gsg_jax.config.evaluations import evaluation


def get_config() -> ConfigDict:
    """Returns the config of the job."""
    return evaluation("few_label")
