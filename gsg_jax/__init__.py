"""Siamese self-supervised learning in JAX: one pure train step, one table of methods.

    import gsg_jax
    encoder = gsg_jax.load("runs/quickstart")
    h = encoder.embed(["a.jpg", "b.png"])  # float32 [2, encoder.width]

Importing the package imports neither JAX nor NumPy; its functions do when they are called.
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gsg_jax.console import UsageError, UserError

if TYPE_CHECKING:
    import flax.linen
    from ml_collections import ConfigDict

    from gsg_jax.data.source import Source
    from gsg_jax.evaluation.image_encoder import ImageEncoder
    from gsg_jax.methods import Method

__version__ = "0.1.0"
__all__ = [
    "UsageError",
    "UserError",
    "evaluate",
    "get_config",
    "load",
    "pretrain",
    "register_backbone",
    "register_dataset",
    "register_method",
]


def load(
    path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None
) -> "ImageEncoder":
    """Opens a trained network that embeds images.

    Args:
      path: the workdir of a run, whose newest checkpoint is taken; a PyTorch checkpoint file
        (.safetensors, or .pth, .tar, .pt, .bin, .ckpt) in a layout that the import takes; or a
        file or folder of an export for torchvision, timm or the reference.
      overrides: for a file, options of the import as on its command line, by dotted keys, such as
        {"prefix": "encoder.", "views.mean": (0.5,) * 3}.

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

      Errors are reported in one line:

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
    if is_run and overrides:
        raise UsageError(f"{path} is a run, whose config says {', '.join(overrides)} already")
    if is_run:
        return open_run(path)
    config = get_config("import_torch", overrides)
    run, variables, channels = read_backbone(path, config)
    return ImageEncoder(path, encoder_from(run, variables, step=0), preparation(run, channels))


def get_config(name: str, overrides: Mapping[str, Any] | None = None) -> "ConfigDict":
    """Returns the config of a method or an evaluation, to read, change and train with.

    Args:
      name: a config file's, with its recipe after a colon, as on the command line.
      overrides: other values by dotted keys, checked as flags are.

    Raises:
      UsageError: if there is no such config, recipe or key, or a value has a wrong type.

    Examples:
      >>> config = gsg_jax.get_config("simsiam_gsg:folder", {"data.dir": "photos"})
      >>> config.method.name, config.data.dir
      ('simsiam_gsg', 'photos')
      >>> gsg_jax.get_config("simsiam_gsg", {"run.epochs": 2})
      Traceback (most recent call last):
      gsg_jax.console.UsageError: --config.run.epochs: there is no such key; did you mean ...
    """
    from gsg_jax.config.load import load_config, override

    config = load_config(name)
    override(config, overrides or {})
    return config


def pretrain(config: "ConfigDict | str", workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Pretrains, or resumes the run in the folder, as the command line does.

    Args:
      config: from get_config, or a config's name.
      workdir: folder of the run.

    Returns:
      The figures that the command line ends with, such as loss, knn_top1 and state_digest. Ctrl-C
      and SIGTERM save and stop the run: `step` is then less than `num_steps`.

    Raises:
      UserError: if the run cannot start or continue.

    Examples:
      >>> config = gsg_jax.get_config("simsiam_gsg", {"run.num_epochs": 2})
      >>> figures = gsg_jax.pretrain(config, "runs/mine")
      >>> figures["step"] == figures["num_steps"]
      True
    """
    config = get_config(config) if isinstance(config, str) else config
    if config.get("job") != "pretrain":
        raise UsageError(f"the config's job is {config.get('job')}, not pretrain: use evaluate")
    return _run(config, workdir)


def evaluate(
    workdir: str | os.PathLike[str], name: str, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Evaluates a run as the command line does.

    Args:
      workdir: folder of the run; "evaluate_all" and "report" write to it, "finetune", "features"
        and "linear" on images to a folder in it, the others nothing.
      name: "knn", "few_label", "linear", "finetune", "transfer", "features", "evaluate_all",
        "report", or the file of another evaluation; a recipe may follow after a colon.
      overrides: other values of its config, as in get_config.

    Returns:
      The figures that the command line ends with.

    Raises:
      UserError: if the run cannot be evaluated.

    Examples:
      >>> figures = gsg_jax.evaluate("runs/mine", "knn", {"eval.knn_k": (20,)})
      >>> 0 <= figures["knn_top1"] <= 1
      True
    """
    from gsg_jax.config.command_line import default_workdir

    config = get_config(name)
    if "pretrained" not in config:
        raise UsageError(f"{name} is no evaluation of a run: take for example knn or linear")
    config = get_config(name, {"pretrained": os.path.expanduser(workdir), **(overrides or {})})
    return _run(config, default_workdir(name, config))


def register_method(name: str, method: "Method") -> None:
    """Adds a method of your own: `config.method.name` may be `name` from now on.

    The file that registers it may be the config itself, a --plugin of the command line, or any
    imported module; running it again replaces what it registered. examples/own_method.py is a
    complete example.

    Args:
      name: a Python name that no other method has.
      method: its row, as in gsg_jax.methods.METHODS: the loss and the choices around it. Its
        `options` come with their default, limits and meaning.

    Raises:
      UsageError: if the name is taken, or the row has a wrong part.

    Examples:
      >>> from gsg_jax.methods import Key, Method
      >>> def pull(outputs, memory, key, *, stop_gradient, power):
      ...     distance = abs(outputs.z[0] - outputs.z[1]) ** power
      ...     return distance.mean(), memory, {"attraction": distance.mean()}
      >>> options = {"power": Key(2.0, "of the distance", (1, 9))}
      >>> gsg_jax.register_method("pull", Method(pull, "online", "none", options))
      >>> gsg_jax.register_method("byol", Method(pull, "online", "none", options))
      Traceback (most recent call last):
      gsg_jax.console.UsageError: register_method('byol'): this name is taken by gsg_jax: ...
    """
    from gsg_jax.config.own import register

    register("method", name, method)


def register_backbone(
    name: str, build: Callable[["ConfigDict", Callable[..., Any]], "flax.linen.Module"]
) -> None:
    """Adds a backbone of your own: `config.model.backbone` may be `name` from now on.

    It is registered in the same places as a method; examples/own_backbone.py is an example.
    Evaluations of a run need the backbone's file too, as --plugin or imported: gsg_jax never runs
    a file because a run's folder names it.

    Args:
      name: a Python name that no other backbone has.
      build: (model, norm) -> a Flax module that maps images [N, H, W, C], with the argument
        `train`, to embeddings [N, F]. `model` is `config.model`; norm(name=...)(x, train=train) is
        the normalisation that the config asks for, by each view's statistics.

    Raises:
      UsageError: if the name is taken.

    Examples:
      >>> import flax.linen as nn
      >>> class Flat(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, *, train):
      ...         return nn.Dense(8)(x.reshape(len(x), -1))
      >>> gsg_jax.register_backbone("flat", lambda model, norm: Flat())
    """
    from gsg_jax.config.own import register

    register("backbone", name, build)


def register_dataset(name: str, opener: Callable[["ConfigDict", str], "Source | None"]) -> None:
    """Adds a data set of your own: `config.data.name` may be `name` from now on.

    It is registered in the same places as a backbone; examples/own_dataset.py is an example.

    Args:
      name: a Python name that no other source has.
      opener: (data, split) -> a Source, such as gsg_jax.data.source.ArraySource; None if there is
        no such split. `data` is `config.data`, and split is "train" or "test".

    Raises:
      UsageError: if the name is taken.

    Examples:
      >>> import numpy as np
      >>> from gsg_jax.data.source import ArraySource
      >>> images = np.zeros((10, 32, 32, 3), np.uint8)
      >>> gsg_jax.register_dataset("black", lambda data, split: ArraySource("black", images))
    """
    from gsg_jax.config.own import register

    register("dataset", name, opener)


def _run(config: "ConfigDict", workdir: str | os.PathLike[str]) -> dict[str, Any]:
    from absl import logging

    from gsg_jax.devices.mesh import give_fake_devices_threads
    from gsg_jax.main import run_job

    give_fake_devices_threads()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # Orbax logs a traceback for every error
    try:
        return run_job(config, pathlib.Path(os.path.expanduser(workdir)) if workdir else None)
    finally:
        logging.set_verbosity(before)
