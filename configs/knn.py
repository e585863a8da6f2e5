"""k-NN on a pretrained backbone.

    python -m gsg_jax.main --config=configs/knn.py --config.pretrained=runs/simsiam_gsg-default

Source: Wu et al., CVPR 2018 (arXiv 1805.01978), section 3.4.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Builds the config of the job."""
    config = ConfigDict()
    config.job = "knn"
    config.pretrained = ""  # the --workdir of a pretraining run
    config.data = ConfigDict(
        {  # "" = as in pretraining
            "name": "",
            "dir": "",
            "train_split": "",
            "test_split": "",
        }
    )
    config.eval = ConfigDict(
        {
            "knn_k": (20, 200),
            "knn_temperature": 0.2,
            "batch_size": 500,
            "max_bank": 2_000_000,  # training images that vote
        }
    )
    return config
