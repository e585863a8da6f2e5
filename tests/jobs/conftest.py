"""A finished run, on images with labels."""

import pytest

from tests.runs import call, tiny, write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images: 40 to train on, 24 to test, two classes each."""
    return write_images(tmp_path_factory.mktemp("images"), num_test=24)


@pytest.fixture(scope="session")
def pretrained(images, tmp_path_factory):
    """The workdir of a run on them."""
    workdir = tmp_path_factory.mktemp("run") / "made"
    status, _, err = call(*tiny("simsiam_gsg", images, workdir, "--config.run.num_steps=6"))
    assert status == 0, err
    return workdir
