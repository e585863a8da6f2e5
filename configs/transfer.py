"""Linear transfer to other data sets: logistic regression on the embeddings of each.

    python -m gsg_jax.main --config=configs/transfer.py --config.pretrained=DIR

--config.transfer.dir is the TFDS folder. Sets that are not on the machine are reported as
missing. Not yet run on the real sets.

Source: Kornblith et al., CVPR 2019 (arXiv 1805.08974), appendix A.
"""

from ml_collections import ConfigDict

from gsg_jax.config.evaluations import evaluation


def get_config() -> ConfigDict:
    """Returns the config of the job."""
    return evaluation("transfer")
