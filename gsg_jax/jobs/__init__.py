"""JOBS: what `python -m gsg_jax.main` can do, by the name in `config.job`."""

import pathlib
from typing import Any

import jax
import ml_collections

from gsg_jax.checkpoint import Checkpoints
from gsg_jax.config import check_ranges, from_record
from gsg_jax.data.sources import open_source
from gsg_jax.errors import UsageError, UserError
from gsg_jax.evaluation.features import backbone_embed
from gsg_jax.evaluation.monitor import KnnMonitor
from gsg_jax.experiment import build_experiment, check_patches
from gsg_jax.progress import say
from gsg_jax.train import pretrain
from gsg_jax.train_step import TrainState, init_state
from gsg_jax.workdir import read_config


def classify_by_knn(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Scores a pretrained backbone by k-NN.

    Args:
      config: of configs/knn.py.
      workdir: unused; nothing is written.

    Returns:
      The job's last line: knn_top1 (of the first k), and knn_top1_k<k> for each k.

    Raises:
      UserError: where there is no run, no checkpoint, no image or no label.
    """
    del workdir
    if not config.pretrained:
        raise UsageError("--config.pretrained is empty: give the --workdir of a pretraining run")
    ks = config.eval.knn_k
    if not isinstance(ks, tuple) or not ks or not all(isinstance(k, int) and k > 0 for k in ks):
        raise UsageError(f"--config.eval.knn_k={ks}: takes whole numbers, such as (20,200)")
    check_ranges(config)
    run = from_record(read_config(pathlib.Path(config.pretrained)))
    for key, value in config.data.items():
        run.data[key] = value or run.data[key]
    run.eval.update(config.eval.to_dict() | {"knn_k": max(ks)})  # the one that may be too large

    train, test = open_source(run.data, "train"), open_source(run.data, "test")
    if not train.class_names:
        raise UserError(f"{train.name} has no labels: k-NN needs class folders or a labelled set")
    for source in (train, test):
        check_patches(run, source)
    state = restore_newest(pathlib.Path(config.pretrained), run, train.image(0).shape[-1])
    say(f"step {int(state.step)} of {config.pretrained}: {len(train):,} images vote")
    experiment = build_experiment(run, num_steps=1, steps_per_epoch=1)
    embed = backbone_embed(
        experiment.online.backbone,
        state.params["backbone"],
        state.batch_stats["backbone"],
        run.views,
    )
    scores = KnnMonitor(run, train, test).top1_by_k(embed, ks)
    for k, score in zip(ks, scores, strict=True):
        say(f"k-NN top-1, k {k:3}: {score:.4f}")
    by_k = {f"knn_top1_k{k}": score for k, score in zip(ks, scores, strict=True)}
    method = run.method.name
    return {"job": "knn", "method": method, "step": int(state.step), "knn_top1": scores[0], **by_k}


def restore_newest(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, channels: int
) -> TrainState:
    """Restores the newest checkpoint of a run, whole, onto the first device.

    Args:
      workdir: DIR of the run.
      config: the run's record.
      channels: of its images.

    Returns:
      The train state.

    Raises:
      UserError: where there is no checkpoint.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    newest = checkpoints.newest_step()
    if newest is None:
        raise UserError(f"{workdir} holds no checkpoint yet: let the run reach its first")
    experiment = build_experiment(config, num_steps=1, steps_per_epoch=1)
    like = jax.eval_shape(lambda: init_state(experiment, channels))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    state = checkpoints.restore(newest, like)
    checkpoints.close()
    return state


JOBS = {"pretrain": pretrain, "knn": classify_by_knn}
