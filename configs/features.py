"""Embeddings of whole splits in .npz files: h, label and id.

    python -m gsg_jax.main --config=configs/features.py --config.pretrained=runs/simsiam_gsg-default

They land in runs/simsiam_gsg-default/features, or in --workdir=DIR; a stopped job goes on there.

Source: pooled features of a frozen backbone, as in Chen & He, CVPR 2021 (arXiv 2011.10566).
"""

from ml_collections import ConfigDict

from gsg_jax.config import evaluations as recipes


def get_config() -> ConfigDict:
    """Builds the config of the job."""
    return recipes.evaluation("features")
