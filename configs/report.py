"""A run as one HTML file: settings, curves, a map of the embeddings, neighbours, views, classes.

    python -m gsg_jax.main --config=configs/report.py --config.pretrained=runs/simsiam_gsg-default

It is written to runs/simsiam_gsg-default/report.html, or to --workdir=DIR. Every pretraining writes
one at its end, unless --config.run.report=false.

Source: t-SNE of van der Maaten & Hinton, JMLR 9 (2008); k-NN as in configs/knn.py.
"""

from ml_collections import ConfigDict

from gsg_jax.config.evaluations import evaluation


def get_config() -> ConfigDict:
    """Returns the config of the job."""
    return evaluation("report")
