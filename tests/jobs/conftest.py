"""A finished run, on images with labels."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.runs import done, tiny, write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images: 40 to train on, 24 to test, two classes each."""
    return write_images(tmp_path_factory.mktemp("images"), num_test=24)


@pytest.fixture
def on_one_device(monkeypatch):
    """Evaluations on one device, which compile faster."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    monkeypatch.setattr("gsg_jax.evaluation.encoder.all_devices", lambda: mesh)


@pytest.fixture(scope="session")
def pretrained(images, tmp_path_factory):
    """The workdir of a run on them."""
    workdir = tmp_path_factory.mktemp("run") / "made"
    flags = ("--config.run.num_steps=6", "--config.eval.few_label=true")
    done(*tiny("simsiam_gsg", images, workdir, *flags))
    return workdir
