"""JOBS: what `python -m gsg_jax.main` can do, by the name in `config.job`, one file an evaluation.

A job takes its config and the folder it may write to, and returns the figures of its last line.
"""

from gsg_jax.jobs.evaluate_all import evaluate_all
from gsg_jax.jobs.features import embed_splits
from gsg_jax.jobs.finetune import finetune
from gsg_jax.jobs.knn import classify_by_knn
from gsg_jax.jobs.linear import classify_linearly
from gsg_jax.jobs.transfer import transfer
from gsg_jax.train import pretrain

JOBS = {
    "pretrain": pretrain,
    "features": embed_splits,
    "knn": classify_by_knn,
    "linear": classify_linearly,
    "finetune": finetune,
    "transfer": transfer,
    "evaluate_all": evaluate_all,
}
