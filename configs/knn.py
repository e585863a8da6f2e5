"""k-NN on a pretrained backbone, or on the embeddings of a features job.

    python -m gsg_jax.main --config=configs/knn.py --config.pretrained=runs/simsiam_gsg-default

Source: Wu et al., CVPR 2018 (arXiv 1805.01978), section 3.4.
"""

from ml_collections import ConfigDict

from gsg_jax.config.evaluations import evaluation


def get_config() -> ConfigDict:
    """Returns the config of the job."""
    return evaluation("knn")
