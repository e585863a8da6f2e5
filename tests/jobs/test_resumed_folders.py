"""Folders of evaluations that are resumed: one process writes, on the images it began with."""

import shutil

import pytest

from gsg_jax.jobs import evaluate_all, finetune, linear
from gsg_jax.run.lock import LOCK, writing
from tests.jobs.test_finetune_job import SMALL
from tests.runs import done, hashes, job, on_images, refused
from tests.small import save_image

pytestmark = pytest.mark.usefixtures("on_one_device")
JOBS = {
    "finetune": (*SMALL, "--config.labels=0.5"),
    "linear": (*SMALL, "--config.protocol=images"),
    "evaluate_all": ("--config.parts=('transfer',)",),
}


@pytest.fixture
def nothing_is_trained(monkeypatch):
    """Jobs that keep their folder and do nothing else."""
    monkeypatch.setattr(finetune, "tune", lambda *_: {})
    monkeypatch.setattr(evaluate_all, "transfer_figures", lambda *_: {})
    for name in ("train", "scores"):
        monkeypatch.setattr(linear.ClassifierRun, name, lambda *_: None)
    for name in ("write_trained", "reported_figures"):
        monkeypatch.setattr(linear, name, lambda *_: {})


@pytest.mark.usefixtures("nothing_is_trained")
@pytest.mark.parametrize("name", JOBS)
def test_another_test_image_is_told_and_only_one_process_writes(name, pretrained, images, tmp_path):
    folder, workdir = tmp_path / "images", tmp_path / "evaluation"
    shutil.copytree(images, folder)
    flags = [f"--config.pretrained={pretrained}", f"--workdir={workdir}", *JOBS[name]]
    flags = job(name, *flags, *on_images(folder))
    with writing(workdir, "evaluation.lock" if name == "evaluate_all" else LOCK):
        assert f"{workdir} is written by process " in refused(*flags)
    done(*flags)
    done(*flags)
    save_image(folder / "test" / "even" / "000.png", size=(90, 90))
    before = hashes(workdir)
    said = refused(*flags)
    assert "test.sizes (" in said and "train." not in said and hashes(workdir) == before


@pytest.mark.usefixtures("nothing_is_trained")
def test_every_evaluation_of_a_run_that_trains_is_written_beside_it(pretrained, tmp_path):
    run = shutil.copytree(pretrained, tmp_path / "run")
    with writing(run):
        done(*job("evaluate_all", f"--config.pretrained={run}", *JOBS["evaluate_all"]))
    assert (run / "evaluation.json").exists()
