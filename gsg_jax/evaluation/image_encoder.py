"""Embeds images of any kind and size: files, folders, Pillow images, arrays."""

import dataclasses
import os
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from gsg_jax.config.evaluations import evaluation
from gsg_jax.console import UserError, say
from gsg_jax.data.crops import EVAL_RESIZE, centre_cut
from gsg_jax.data.decode import DECODE_ERRORS, extensions, image_pixels, read_photo
from gsg_jax.data.files import list_images
from gsg_jax.evaluation.encoder import Encoder, encoder_of, read_run
from gsg_jax.evaluation.features import embed_source
from gsg_jax.models.siamese import image_channels
from gsg_jax.run.checkpoint import read_newest

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How an image of any size becomes one that a network takes.

    Attributes:
      size: side of the square that it is cut to, pixels.
      resize: length of its short side before the cut, in units of the size.
      channels: 3 for RGB, 1 for grayscale.
    """

    size: int
    resize: float
    channels: int

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Resizes and cuts uint8 [H, W, channels] to [size, size, channels]."""
        return centre_cut(pixels, self.size, self.resize)


def preparation(run: ml_collections.ConfigDict, channels: int) -> Preparation:
    """How images of any size become what a run's network takes.

    They are cut as in evaluation if the run cuts its images while decoding (data.crop="host"). A
    run that takes its images whole gets squares of the same side, with only the ends of the long
    side cut off: its own images stay as they are if they are such squares.
    """
    resize = EVAL_RESIZE if run.data.crop == "host" else 1.0
    return Preparation(run.views.size, resize, channels)


def run_preparation(workdir: Path, run: ml_collections.ConfigDict) -> Preparation:
    """The preparation for a run, whose newest checkpoint tells the channels of its images."""
    _, shapes = read_newest(workdir, lambda x, step: x.shapes(step, ("params",)))
    return preparation(run, image_channels(run, shapes["params"]["backbone"]))


@dataclasses.dataclass(frozen=True, repr=False)
class ImageEncoder:
    """A trained backbone that embeds images; `gsg_jax.load` returns it.

    Attributes:
      path: where it comes from.
      encoder: the network, on all devices.
      prepare: turns an image into what the network takes.
    """

    path: Path
    encoder: Encoder
    prepare: Preparation

    def embed(self, images: Any, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Embeds images.

        Images of any size are prepared as `gsg_jax.search` does: rotated as the camera says,
        brought to the network's colours (transparent pixels become white, 16 bits become 8),
        resized, and cut to their centre.

        Args:
          images: a list of paths, Pillow images, or uint8 arrays [H, W, C], C 1, 3 or 4; one
            array [N, H, W, C]; or a folder, whose images, also those in subfolders, are taken in
            the order of their names.
          batch_size: images at a time, over all devices.

        Returns:
          float32 [N, width], in the order of the images.

        Raises:
          UserError: if an image, which is named, cannot be read or is of another kind.
        """
        listed = _listed(images)
        if not listed:
            return np.zeros((0, self.width), np.float32)
        # A power of two: few sizes to compile for, whatever the number of images.
        most = min(batch_size, 1 << (len(listed) - 1).bit_length())
        source = _Images(listed, self.prepare)
        return embed_source(self.encoder.embed, source, batch_size=most, size=None)

    @cached_property
    def width(self) -> int:
        """Width of an embedding, F."""
        size, encoder = self.image_size, self.encoder
        variables = {"params": encoder.params, "batch_stats": encoder.batch_stats}
        apply = partial(encoder.backbone.apply, variables, train=False)
        image = jax.ShapeDtypeStruct((1, size, size, self.channels), jnp.float32)
        return jax.eval_shape(apply, image).shape[-1]

    @property
    def image_size(self) -> int:
        """Side of the square that every image is cut to, pixels."""
        return self.prepare.size

    @property
    def channels(self) -> int:
        """3 if the network sees colours, 1 if it sees grey."""
        return self.prepare.channels

    @property
    def step(self) -> int:
        """Step of the checkpoint; 0 if it was imported."""
        return self.encoder.step

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The config of the run; for a file of weights, the one that they would be imported to."""
        return self.encoder.run

    def __repr__(self) -> str:
        side = self.image_size
        return (
            f"<encoder of {self.path}: {self.config.model.backbone}, step {self.step:,}, images "
            f"{side} x {side} x {self.channels} to {self.width} numbers>"
        )


def open_run(workdir: Path) -> ImageEncoder:
    """Opens the newest checkpoint of a run.

    Raises:
      UserError: if there is no run, no checkpoint, or one is damaged.
    """
    config = evaluation("search")
    config.pretrained = str(workdir)
    run = read_run(config, needs_data=False)
    prepare = run_preparation(workdir, run)
    return ImageEncoder(workdir, encoder_of(config, run, prepare.channels), prepare)


class _Images:
    """A list of images, prepared for a network; satisfies Source."""

    name, labels, class_names, paths = "the images", None, (), ()

    def __init__(self, images: list[Path | Image.Image], prepare: Preparation):
        self._images, self._prepare = images, prepare
        self.image_shape = (prepare.size, prepare.size, prepare.channels)

    def __len__(self) -> int:
        return len(self._images)

    def image(self, i: int) -> np.ndarray:
        image, channels = self._images[i], self._prepare.channels
        if isinstance(image, Path):
            return self._prepare(read_photo(image, channels))
        try:
            return self._prepare(image_pixels(image, channels=channels, exif=True))
        except DECODE_ERRORS as error:
            raise UserError(f"image {i} (mode {image.mode}) cannot be used: {error}") from error


def _listed(images: Any) -> list[Path | Image.Image]:
    """Lists what `embed` was given; raises UserError if it is of another kind."""
    if isinstance(images, str | os.PathLike):
        path = Path(os.path.expanduser(images))
        images = [path]
        if path.is_dir():
            listed = list_images(path)
            images = listed.paths
            if warning := listed.warning():
                say(warning)
        if not images:
            kinds = " ".join(extensions())
            raise UserError(f"{path} holds no image ({kinds}): give another folder")
    elif isinstance(images, Image.Image):
        images = [images]
    elif getattr(images, "ndim", 4) != 4:
        raise UserError(
            f"the images are one array of shape {tuple(images.shape)}: give [N, H, W, C], and one "
            "image as array[None]"
        )
    if isinstance(images, bytes | dict) or not isinstance(images, Iterable):
        raise UserError(
            f"the images are of type {type(images).__name__}: give a folder, an array, or a list "
            "of paths, of Pillow's images or of arrays"
        )
    return [_checked(image, number) for number, image in enumerate(images)]


def _checked(image: Any, number: int) -> Path | Image.Image:
    if isinstance(image, str | os.PathLike):
        path = Path(os.path.expanduser(image))
        if not path.is_file():  # opening a pipe would block
            raise UserError(f"image {number} is {path}: there is no such file")
        return path
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))
        if pixels.dtype != np.uint8 or not is_image or not pixels.size:
            raise UserError(
                f"image {number} is an array of {pixels.dtype} and shape {pixels.shape}: give "
                "uint8 [H, W, C] from 0 to 255, with C 1, 3 or 4"
            )
        is_grey = pixels.shape[2:] == (1,)
        return Image.fromarray(pixels[..., 0] if is_grey else pixels)
    try:
        image.load()  # here, since several threads must not
    except DECODE_ERRORS as error:
        name = getattr(image, "filename", "") or "of Pillow"
        raise UserError(f"image {number} ({name}) cannot be decoded: {error}") from error
    if image.mode == "F":
        raise UserError(f"image {number} holds floats (mode F): convert it to 8 bits")
    return image
