"""An encoder to evaluate, opened from the workdir of its run, and the images to evaluate it on."""

import dataclasses
import pathlib
from collections.abc import Collection
from functools import partial

import flax.linen as nn
import jax
import ml_collections

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.check_images import check_channels, check_patches
from gsg_jax.config.load import from_record
from gsg_jax.console import UsageError, UserError, given_path
from gsg_jax.data.open import SOURCES, Source, open_source
from gsg_jax.data.source import num_channels
from gsg_jax.devices.mesh import all_devices, replicated
from gsg_jax.evaluation.features import Embed, backbone_embed, pixels
from gsg_jax.methods import METHODS
from gsg_jax.models.siamese import BACKBONES, build_backbone, build_siamese, init_variables
from gsg_jax.models.vit import VITS
from gsg_jax.run.checkpoint import read_newest, state_digest
from gsg_jax.run.integrity import saved_steps
from gsg_jax.run.workdir import file_of_part, read_config


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What an evaluation evaluates.

    Attributes:
      kind: one of config.ENCODERS.
      run: the run's record, with the data that the evaluation names.
      step: of the checkpoint; 0 if none was read.
      backbone: the module, with statistics of one view.
      params: of the backbone, on all devices.
      batch_stats: running statistics of the backbone; {} without BatchNorm.
      mesh: all devices.
    """

    kind: str
    run: ml_collections.ConfigDict
    step: int
    backbone: nn.Module
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
        """Hex digits that differ between encoders, and between the steps of one run."""
        return state_digest({"params": self.params, "batch_stats": self.batch_stats})

    @property
    def about(self) -> dict[str, str | int]:
        """The first figures of an evaluation's last line: which encoder they are about."""
        return {"method": self.run.method.name, "encoder": self.kind, "step": self.step}


def read_run(
    config: ml_collections.ConfigDict, *, needs_data: bool = True
) -> ml_collections.ConfigDict:
    """Returns the config of the run that an evaluation names, with the evaluation's data in it.

    Args:
      config: of an evaluation; reads `pretrained`, `data` and views.size, where "" and 0 mean as in
        pretraining. Another size is that of the images' centres.
      needs_data: whether the data will be opened.

    Raises:
      UserError: if there is no run, a custom part of it that is needed is not registered, or the
        backbone takes no images of this size.
    """
    workdir = given_path("--config.pretrained", config.pretrained)
    run = read_record(workdir)
    if config.data.name not in ("", run.data.name):
        run.data.dir = ""  # of other images
    for key in ("name", "dir", "train_split", "test_split", "follow_links", "crop"):
        run.data[key] = config.data[key] or run.data[key]
    if config.views.size:
        _set_size(run, config.views.size, config.data.crop)
    if needs_data:
        _check_is_there(workdir, "dataset", run.data.name, SOURCES)
    return run


def _set_size(run: ml_collections.ConfigDict, size: int, crop: str) -> None:
    """Sets a size of the images' centres other than pretraining's."""
    what, patch_size = f"--config.views.size={size}", run.model.patch_size
    if crop == "device":
        raise UsageError(
            f"{what}: images are taken whole by --config.data.crop=device: give one of the two"
        )
    if run.model.backbone in VITS and size % patch_size:
        raise UsageError(f"{what}: must be a multiple of the run's model.patch_size, {patch_size}")
    run.views.size, run.data.crop = size, "host"


def read_record(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Reads the config of a run; raises UserError if there is none or it is damaged.

    A custom method need not be there, since only its backbone is evaluated; a custom backbone must.
    """
    run = from_record(read_config(workdir))
    try:
        _check_is_there(workdir, "backbone", run.model.backbone, BACKBONES)
        is_own = file_of_part(workdir, "method", run.method.name)
        check_pretraining(run, checks_method=run.method.name in METHODS or not is_own)
    except (UsageError, AttributeError, TypeError) as error:
        raise UserError(
            f"{workdir / 'config.json'} is damaged or of another version ({error}): restore it"
        ) from error
    return run


def _check_is_there(workdir: pathlib.Path, kind: str, name: str, known: Collection[str]) -> None:
    """Raises UserError if a custom part of a run is not registered here.

    The file that the run recorded is named and never run: it came with the folder.
    """
    if name not in known and (file := file_of_part(workdir, kind, name)):
        raise UserError(
            f"{workdir}: its {kind} {name!r} was registered by {file}, which was not given: add "
            "--plugin=FILE with that file, or import it first in Python"
        )


def open_encoder(
    config: ml_collections.ConfigDict, run: ml_collections.ConfigDict, source: Source
) -> Encoder:
    """Opens the encoder that an evaluation names, on all devices.

    Only the backbone of the newest checkpoint is restored.

    Args:
      config: of an evaluation; reads `pretrained` and `encoder`.
      run: of read_run.
      source: images that it will embed.

    Raises:
      UserError: if there is no checkpoint, or it is damaged, of another network, or of images
        with another number of channels.
    """
    check_channels(run, source)
    check_patches(run, source)
    return encoder_of(config, run, num_channels(source))


def encoder_of(
    config: ml_collections.ConfigDict, run: ml_collections.ConfigDict, channels: int
) -> Encoder:
    """Opens the encoder that an evaluation names, as open_encoder does, given the channels."""
    mesh, workdir = all_devices(), given_path("--config.pretrained", config.pretrained)
    # Learned positions have the size of pretraining.
    drawn = read_record(workdir) if config.views.size else run
    init = partial(untrained_backbone, drawn, channels)
    step, variables = 0, {"params": {"backbone": {}}, "batch_stats": {"backbone": {}}}
    if config.encoder == "untrained":
        variables = jax.jit(init, out_shardings=replicated(mesh))()
    elif config.encoder == "pretrained":
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
            jax.eval_shape(init),
        )
        step, variables = read_newest(workdir, lambda x, step: x.restore(step, like))
    return Encoder(
        kind=config.encoder,
        run=run,
        step=step,
        backbone=_backbone(run.model),
        params=variables["params"]["backbone"],
        batch_stats=variables["batch_stats"]["backbone"],
        mesh=mesh,
    )


def encoder_from(run: ml_collections.ConfigDict, variables: dict, step: int) -> Encoder:
    """An encoder of given {params, batch_stats} of a run's backbone, put on all devices."""
    mesh = all_devices()
    variables = jax.device_put(variables, replicated(mesh))
    return Encoder("pretrained", run, step, _backbone(run.model), **variables, mesh=mesh)


def _backbone(model: ml_collections.ConfigDict) -> nn.Module:
    # Fine-tuning's BatchNorm takes whole batches, whatever groups pretraining's took.
    return build_backbone(ml_collections.ConfigDict({**model, "bn_group_images": 0}))


def check_checkpoint(config: ml_collections.ConfigDict) -> None:
    """Raises UserError if an evaluation would find no checkpoint of its run."""
    if config.encoder == "pretrained":
        workdir = given_path("--config.pretrained", config.pretrained)
        if not saved_steps(workdir):
            raise UserError(f"{workdir} holds no checkpoint yet: let the run reach its first")


def untrained_backbone(run: ml_collections.ConfigDict, channels: int) -> dict:
    """Draws a run's backbone before the first step: {params, batch_stats: {backbone}}."""
    branch, _ = build_siamese(run.model, predictor="none", num_views=1)
    variables = init_variables(branch, run.run.seed, (run.views.size, run.views.size, channels))
    groups = ("params", "batch_stats")
    return {group: {"backbone": variables.get(group, {}).get("backbone", {})} for group in groups}


def open_split(run: ml_collections.ConfigDict, split: str) -> Source:
    """Opens a split of a run's data.

    Args:
      run: of read_run.
      split: "train" or "test", as the config's data names them; for a TFDS set any of its splits.

    Raises:
      UserError: if there is no such split.
    """
    data = run.data
    if split not in ("train", "test"):
        if data.name in SOURCES:
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
