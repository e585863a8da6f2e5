"""Checks of a config against the images that it names, made before anything is written."""

from ml_collections import ConfigDict

from gsg_jax.console import UserError, say
from gsg_jax.data.open import Source
from gsg_jax.data.source import num_channels
from gsg_jax.models.vit import VITS


def fit_batch(config: ConfigDict, source: Source) -> dict[str, int]:
    """Halves data.batch_size until a folder's images fill a batch, with one warning.

    Returns:
      {"batch_size_asked": the value before} for the last line; {} if it was not lowered.

    Raises:
      UserError: if there is one image only.
    """
    asked, num_images = config.data.batch_size, len(source)
    if num_images < 2:
        raise UserError(f"{source.name!r} has one image: a pretraining needs at least two")
    while config.data.name == "folder" and config.data.batch_size > max(num_images, 2):
        config.data.batch_size = max(config.data.batch_size // 2, 2)
    if config.data.batch_size == asked:
        return {}
    say(
        f"warning: data.batch_size is lowered from {asked} to {config.data.batch_size}, since "
        f"{source.name!r} has {num_images} images"
    )
    return {"batch_size_asked": asked}


def check_images(config: ConfigDict, train: Source, test: Source | None) -> bool:
    """Checks a run's config against its images; returns whether the run is monitored.

    Raises:
      UserError: names the key, its value and the fix.
    """
    check_channels(config, train)
    _check_queue_fits(config, train)
    _check_probe(config, train)
    if not config.eval.knn_every_epochs:
        return False
    if not train.class_names:  # RankMe alone, which nobody has asked for
        return _fits_patches(config, train)
    for source in (train, test):
        check_patches(config, source)
    return True


def check_channels(config: ConfigDict, source: Source) -> None:
    """Raises UserError if views.mean does not fit the number of channels of the images."""
    channels = num_channels(source)
    if len(config.views.mean) not in (1, channels):
        raise UserError(
            f"--config.views.mean={config.views.mean}: has {len(config.views.mean)} numbers, but "
            f"the images of {source.name} have {channels} channels; give one number a channel"
        )


def check_patches(config: ConfigDict, source: Source | None) -> None:
    """Raises UserError if images that are embedded whole cannot be cut into patches."""
    if not _fits_patches(config, source):
        height, width = source.image_shape[:2]
        raise UserError(
            f"--config.model.patch_size={config.model.patch_size}: does not divide the {height} x "
            f"{width} pixels of {source.name!r}, whose images the monitor embeds whole; take a "
            'patch size that does, or set --config.data.crop="host", which cuts them to '
            "views.size, or --config.eval.knn_every_epochs=0"
        )


def _fits_patches(config: ConfigDict, source: Source | None) -> bool:
    """Whether images, if they are embedded whole, can be cut into the backbone's patches."""
    if config.model.backbone not in VITS or config.data.crop == "host":
        return True
    if source is None or source.image_shape is None:
        return True
    return not any(side % config.model.patch_size for side in source.image_shape[:2])


def _check_queue_fits(config: ConfigDict, source: Source) -> None:
    """Raises UserError if a queue would hold more rows than there are images."""
    queue_size, num_images = config.method.get("queue_size", 0), len(source)
    if queue_size <= num_images:
        return
    advice = f"set it to at most {num_images}"
    if 2 * config.data.batch_size > num_images:  # a queue holds at least two batches
        advice += f", and --config.data.batch_size to at most {num_images // 2}"
    raise UserError(
        f"--config.method.queue_size={queue_size}: {source.name!r} has {num_images} images, of "
        f"which the queue would hold copies; {advice}"
    )


def _check_probe(config: ConfigDict, source: Source) -> None:
    """Raises UserError if an online probe is asked for and the images have no labels."""
    if config.eval.online_linear and not source.class_names:
        raise UserError(
            f"--config.eval.online_linear=True: {source.name!r} has no labels; put the images into "
            "class folders, or set --config.eval.online_linear=false"
        )
