"""Siamese self-supervised learning in JAX: one pure train step, one table of methods.

    import gsg_jax
    encoder = gsg_jax.load("runs/quickstart")
    h = encoder.embed(["a.jpg", "b.png"])  # float32 [2, encoder.width]

Importing the package imports neither JAX nor NumPy; its functions do when they are called.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gsg_jax.console import UsageError, UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from gsg_jax.evaluation.image_encoder import ImageEncoder

__version__ = "0.1.0"
__all__ = ["UsageError", "UserError", "get_config", "load"]


def load(path: str | os.PathLike[str]) -> "ImageEncoder":
    """Opens a trained network, to embed images with.

    Args:
      path: the workdir of a run, whose newest checkpoint is taken; a checkpoint file of PyTorch
        (.safetensors, or .pth, .tar, .pt, .bin) in a layout that the import takes; or a file or
        folder of an export for torchvision, timm or the reference.

    Returns:
      The encoder, with `embed(images)`, `width`, `image_size`, `channels`, `step` and `config`.

    Raises:
      UserError: if there is no such network, or it is damaged.

    Examples:
      >>> import gsg_jax
      >>> encoder = gsg_jax.load("runs/quickstart")
      >>> h = encoder.embed(["a.jpg", "b.png"])
      >>> h.shape == (2, encoder.width), h.dtype
      (True, dtype('float32'))
      >>> encoder.embed("photos").shape == (3, encoder.width)  # a folder
      True

      What is wrong is said in one line:

      >>> encoder.embed(["a.jpg", "lost.jpg"])
      Traceback (most recent call last):
      gsg_jax.console.UserError: image 1 is lost.jpg: there is no such file
    """
    from gsg_jax.devices.compile_cache import use_compile_cache
    from gsg_jax.evaluation.encoder import encoder_from
    from gsg_jax.evaluation.image_encoder import ImageEncoder, open_run, preparation
    from gsg_jax.interop.weights import read_backbone

    path = pathlib.Path(os.path.expanduser(path))
    is_exported = (path / "model.safetensors").is_file()
    is_run = (path / "config.json").is_file() and not is_exported
    if not path.is_file() and not is_exported and not is_run:
        found = "holds no run and no weights" if path.is_dir() else "is not there"
        raise UserError(
            f"{path} {found}: give the workdir of a run, a checkpoint file of PyTorch, or an export"
        )
    use_compile_cache()
    if is_run:
        return open_run(path)
    run, variables, channels = read_backbone(path)
    return ImageEncoder(path, encoder_from(run, variables, step=0), preparation(run, channels))


def get_config(name: str, overrides: Mapping[str, Any] | None = None) -> "ConfigDict":
    """Returns the config of a method or an evaluation, to read, change and train with.

    Args:
      name: of a config file, and its recipe after a colon, as on the command line.
      overrides: other values by dotted keys; they are checked as flags are.

    Raises:
      UsageError: if there is no such config, recipe or key, or a value has a wrong type.

    Examples:
      >>> config = gsg_jax.get_config("configs/simsiam_gsg.py:folder", {"data.dir": "photos"})
      >>> config.method.name, config.data.dir
      ('simsiam_gsg', 'photos')
      >>> gsg_jax.get_config("configs/simsiam_gsg.py", {"run.epochs": 2})
      Traceback (most recent call last):
      gsg_jax.console.UsageError: --config.run.epochs: there is no such key; did you mean ...
    """
    from gsg_jax.config.load import load_config, override

    config = load_config(name)
    override(config, overrides or {})
    return config
