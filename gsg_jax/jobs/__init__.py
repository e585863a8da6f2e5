"""JOBS: what `python -m gsg_jax.main` can do, by the name in `config.job`; one file for each.

A job takes its config, from the file of its name in configs/, and the folder it may write to. It
returns the figures of its last line.
"""

from gsg_jax.jobs.evaluate_all import run_every_evaluation
from gsg_jax.jobs.export import export_weights
from gsg_jax.jobs.features import embed_splits
from gsg_jax.jobs.few_label import classify_with_few_labels
from gsg_jax.jobs.finetune import finetune_backbone
from gsg_jax.jobs.import_torch import import_checkpoint
from gsg_jax.jobs.knn import classify_by_knn
from gsg_jax.jobs.linear import classify_linearly
from gsg_jax.jobs.pretrain import pretrain_and_report
from gsg_jax.jobs.report import write_report
from gsg_jax.jobs.transfer import transfer_to_suite

JOBS = {
    "pretrain": pretrain_and_report,
    "features": embed_splits,
    "knn": classify_by_knn,
    "few_label": classify_with_few_labels,
    "linear": classify_linearly,
    "finetune": finetune_backbone,
    "transfer": transfer_to_suite,
    "evaluate_all": run_every_evaluation,
    "report": write_report,
    "import_torch": import_checkpoint,
    "export": export_weights,
}
# Jobs that read or write one file: several hosts would only repeat it.
ON_ONE_HOST = ("import_torch", "export")
