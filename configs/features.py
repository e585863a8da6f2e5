"""Embeddings of whole splits in .npz files: h, label and id.

    python -m gsg_jax.main --config=configs/features.py --config.pretrained=runs/simsiam_gsg-default

They are written to runs/simsiam_gsg-default/features, or to --workdir=DIR. A stopped job resumes
there.

Source: pooled features of a frozen backbone, as in Chen & He, CVPR 2021 (arXiv 2011.10566).
"""

from ml_collections import ConfigDict

from gsg_jax.config.evaluations import evaluation


def get_config() -> ConfigDict:
    """Returns the config of the job."""
    return evaluation("features")
