"""Small configs and batches for the tests."""

import pathlib
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, resolve
from gsg_jax.console import UsageError
from gsg_jax.data.open import EMBEDDED_FILE
from gsg_jax.run.checkpoint import Checkpoints
from gsg_jax.run.workdir import write_record
from gsg_jax.train.build import build_experiment
from gsg_jax.train.state import Experiment, init_state
from tests.runs import ROOT


def load(name: str = "simsiam_gsg", recipe: str = "") -> ConfigDict:
    """A file of configs/."""
    return load_config(f"{ROOT}/configs/{name}.py{recipe and ':' + recipe}")


def refusal(config: ConfigDict, check: Callable[[ConfigDict], None] = check_pretraining) -> str:
    """What is said of a config that is refused."""
    with pytest.raises(UsageError) as error:
        check(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def data_config(name: str, folder, **changes) -> ConfigDict:
    """What opens a source: its name, folder and splits, and 10 MiB for images held in memory."""
    data = {"name": name, "dir": str(folder), "train_split": "train", "test_split": "test"}
    return ConfigDict({**data, "memory_limit_mb": 10, "follow_links": False, **changes})


def save_image(path, colour=(255, 0, 0), size=(6, 4), **options) -> None:
    """Writes an image of one colour; size is (W, H)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def small_config(method: str, **method_overrides) -> ConfigDict:
    """A resolved config of one stage, 8 channels wide, on 12 x 12 views."""
    config = load(method)
    config.method.update(method_overrides)
    config.model.update({"width": 8, "num_stages": 1, "stem": "small", "projector_width": 12})
    config.model.update({"projector_hidden_width": 12, "predictor_hidden_width": 6})
    config.views.size = 12
    # They cost compile time, and have tests of their own.
    config.views.update(
        {"blur_probability": (0.0,), "solarize_probability": (0.0,), "jitter_probability": 0.0}
    )
    config.data.batch_size = 16
    config.optim.learning_rate *= 5  # the config's own, for a run of a few steps
    if method == "unigrad":
        config.method.loss_scale = 1.0
    if method == "moco_v2":  # its target lags behind what a greater rate changes in a few steps
        config.method.queue_size = 64
        config.optim.learning_rate = 0.3
    if method == "visreg":  # 16 images in more channels than 8 have no Gaussian shape
        config.model.projector_width = 4
    config.run.log_every_steps = 1
    check_pretraining(config)
    return resolve(config)


def small_experiment(method: str, **method_overrides) -> Experiment:
    """The static parts of a small config's step."""
    config = small_config(method, **method_overrides)
    return build_experiment(config, num_steps=20, steps_per_epoch=5)


def save_untrained(workdir: pathlib.Path, config: ConfigDict, channels: int) -> pathlib.Path:
    """Writes a run as it is before its first step, without training; returns its folder."""
    write_record(workdir / "config.json", config)
    experiment = build_experiment(config, num_steps=1, steps_per_epoch=1)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(jax.jit(partial(init_state, experiment, channels))(), None, wait=True)
    return workdir


def images(batch_size: int = 16, seed: int = 0) -> np.ndarray:
    """Some of the embedded images, uint8, cut so that they are not square."""
    with np.load(EMBEDDED_FILE) as arrays:
        return arrays["test_images"][seed * batch_size :][:batch_size, 4:-4, 7:-7]
