"""A backbone to be judged, opened from the folder of its run, and the images to judge it by."""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial

import jax
import ml_collections

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.check_images import check_channels, check_patches
from gsg_jax.config.load import from_record
from gsg_jax.console import UsageError, UserError
from gsg_jax.data.open import Source, open_source
from gsg_jax.devices import mesh as meshes
from gsg_jax.evaluation.features import Embed, backbone_embed, pixels
from gsg_jax.models.resnet import ResNet
from gsg_jax.models.siamese import build_backbone
from gsg_jax.models.vit import ViT
from gsg_jax.run.checkpoint import Checkpoints, saved_steps, state_digest
from gsg_jax.run.workdir import read_config
from gsg_jax.train.build import build_experiment
from gsg_jax.train.state import Experiment, init_state


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What an evaluation judges.

    Attributes:
      kind: one of config.ENCODERS.
      run: the run's record, with the data that the evaluation names.
      step: of the checkpoint; 0 where none was read.
      backbone: the module, with statistics of one view.
      params: of the backbone, on all devices.
      batch_stats: running statistics of the backbone; {} where it has no BatchNorm.
      mesh: all devices.
    """

    kind: str
    run: ml_collections.ConfigDict
    step: int
    backbone: ResNet | ViT
    params: dict
    batch_stats: dict
    mesh: jax.sharding.Mesh

    @property
    def crop_size(self) -> int | None:
        """Side of the centre crop of evaluation, pixels; None takes images as they are."""
        return self.run.views.size if self.run.data.crop == "host" else None

    @property
    def embed(self) -> Embed:
        """The function that embeds images, over all devices."""
        if self.kind == "pixels":
            return pixels
        return backbone_embed(
            self.backbone, self.params, self.batch_stats, self.run.views, self.mesh
        )

    @property
    def digest(self) -> str:
        """Hex digits that tell this encoder from others, or from itself at another step."""
        return state_digest({"params": self.params, "batch_stats": self.batch_stats})

    @property
    def about(self) -> dict[str, str | int]:
        """The first figures of an evaluation's last line: whom it judges."""
        return {"method": self.run.method.name, "encoder": self.kind, "step": self.step}


def read_run(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The record of the run that an evaluation names, with the data that it names besides.

    Args:
      config: of an evaluation; reads `pretrained`, and `data`, of which "" is as in pretraining.

    Returns:
      The run's config.

    Raises:
      UserError: where there is no run.
    """
    run = read_record(pathlib.Path(config.pretrained).expanduser())
    for key in ("name", "dir", "train_split", "test_split", "crop"):
        run.data[key] = config.data[key] or run.data[key]
    return run


def read_record(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run; raises UserError where there is none, or it is damaged."""
    run = from_record(read_config(workdir))
    try:
        check_pretraining(run)
    except (UsageError, AttributeError, TypeError) as error:
        raise UserError(
            f"{workdir / 'config.json'} is damaged or of another version ({error}): restore it"
        ) from error
    return run


def open_encoder(
    config: ml_collections.ConfigDict, run: ml_collections.ConfigDict, source: Source
) -> Encoder:
    """Opens what an evaluation judges.

    Of a checkpoint the backbone alone is restored, the newest one.

    Args:
      config: of an evaluation; reads `pretrained` and `encoder`.
      run: of read_run.
      source: images that it will embed.

    Returns:
      The encoder, on all devices.

    Raises:
      UserError: where there is no checkpoint, or it is damaged, of another network, or of images
        with other channels.
    """
    check_channels(run, source)
    check_patches(run, source)
    mesh = meshes.all_devices()
    experiment = build_experiment(run, num_steps=1, steps_per_epoch=1)
    init = partial(_variables, experiment, source.image(0).shape[-1])
    step, variables = 0, {"params": {"backbone": {}}, "batch_stats": {"backbone": {}}}
    if config.encoder == "untrained":
        variables = jax.jit(init, out_shardings=meshes.replicated(mesh))()
    elif config.encoder == "pretrained":
        step, variables = _restore(pathlib.Path(config.pretrained).expanduser(), init, mesh)
    return Encoder(
        kind=config.encoder,
        run=run,
        step=step,
        backbone=build_backbone(_with_whole_batches(run.model)),
        params=variables["params"]["backbone"],
        batch_stats=variables["batch_stats"]["backbone"],
        mesh=mesh,
    )


def _with_whole_batches(model: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same network; fine-tuning's BatchNorm knows nothing of pretraining's groups."""
    return ml_collections.ConfigDict({**model, "bn_group_images": 0})


def check_checkpoint(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where an evaluation would find no checkpoint of its run."""
    if config.encoder == "pretrained":
        workdir = pathlib.Path(config.pretrained).expanduser()
        if not saved_steps(workdir):
            raise UserError(f"{workdir} holds no checkpoint yet: let the run reach its first")


def _variables(experiment: Experiment, channels: int) -> dict:
    """The backbone's variables before the first step, {params: {backbone}, batch_stats: ...}."""
    state = init_state(experiment, channels)
    groups = {"params": state.params, "batch_stats": state.batch_stats}
    return {group: {"backbone": branches["backbone"]} for group, branches in groups.items()}


def _restore(workdir: pathlib.Path, init: Callable, mesh: jax.sharding.Mesh) -> tuple[int, dict]:
    """The newest step of a run, and the backbone's variables there."""
    whole = meshes.replicated(mesh)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(init)
    )
    with Checkpoints(workdir, read_only=True) as checkpoints:
        newest = checkpoints.required_step()
        return newest, checkpoints.restore_part(newest, like)


def open_split(run: ml_collections.ConfigDict, split: str) -> Source:
    """Opens a split of a run's data.

    Args:
      run: of read_run.
      split: "train" or "test", which the config's data names; of a TFDS set any of its own.

    Returns:
      The images.

    Raises:
      UserError: where there is no such split.
    """
    data = run.data
    if split not in ("train", "test"):
        if data.name in ("embedded", "folder"):
            raise UserError(f"{data.name!r} has no split {split!r}: take train or test")
        data = data.copy_and_resolve_references()
        data.test_split, split = split, "test"
    source = open_source(data, split)
    if source is None:
        raise UserError(
            f"{data.name!r} has no test split: set --config.data.test_split, or for a folder put "
            "the images into train/ and test/"
        )
    return source
