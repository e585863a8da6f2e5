"""A method of one's own file is trained, killed, resumed, evaluated, reported and compared."""

import os
import signal
import subprocess
import sys

import pytest

from gsg_jax.report import compare
from tests.own import OWN_BACKBONE, OWN_DATASET, OWN_METHOD, forgotten
from tests.runs import ROOT, assert_same, done, job, last_step, refused, tiny, wait_until

pytestmark = pytest.mark.extended
FLAGS = ("--config.run.num_steps=60", "--config.run.checkpoint_every_steps=5")


@pytest.fixture(autouse=True)
def nothing_stays():
    with forgotten():
        yield


def flags_of(images, workdir, *flags):
    return [f"--config={OWN_METHOD}", *tiny("simsiam", images, workdir, *FLAGS, *flags)[1:]]


def test_a_method_of_ones_own_file_does_what_a_built_in_one_does(images, tmp_path, on_one_device):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    flags = flags_of(images, killed)
    command = [sys.executable, "-m", "gsg_jax.main", *flags]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(lambda: last_step(killed) >= 12, run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert last_step(killed) < 60
    last, _ = done(*flags)
    wanted, _ = done(*flags_of(images, whole))
    assert_same(killed, last, whole, wanted)
    assert last["method"] == "alignment_uniformity"
    with forgotten():
        evaluate(killed, whole)


def evaluate(killed, whole):
    """As another process, which is given no file: the backbone is a built-in one."""
    of_run = f"--config.pretrained={killed}"
    knn, _ = done(*job("knn", of_run, "--config.eval.knn_k=(3,)"))
    assert knn["method"] == "alignment_uniformity" and knn["step"] == 60
    linear, _ = done(*job("linear", of_run, "--config.probe.num_epochs=2"))
    assert 0 <= linear["linear_top1"] <= 1
    report, _ = done(*job("report", of_run))
    assert (
        report["missing"] == [] and "alignment_uniformity" in (killed / "report.html").read_text()
    )
    page = killed.parent / "compare.html"
    assert compare.main([str(killed), str(whole), f"--output={page}"]) == 0
    assert "uniformity_weight" in page.read_text() or killed.name in page.read_text()


def test_a_run_of_an_own_backbone_and_data_set_is_evaluated_with_their_files(
    tmp_path, on_one_device
):
    plugins = [f"--plugin={OWN_BACKBONE}", f"--plugin={OWN_DATASET}"]
    own = ["--config.model.backbone=plain_cnn", "--config.data.name=shapes", "--config.data.dir="]
    done(*tiny("byol_gsg", tmp_path, tmp_path / "run", *own), *plugins)
    of_run = job("knn", f"--config.pretrained={tmp_path / 'run'}", "--config.eval.knn_k=(3,)")
    figures, _ = done(*of_run, *plugins)
    assert 0.4 < figures["knn_top1"] <= 1
    with forgotten():
        for given, lacking in (([], "backbone 'plain_cnn'"), (plugins[:1], "dataset 'shapes'")):
            error = refused(*of_run, *given)
            assert lacking in error and "--plugin=FILE" in error
        report, _ = done(*job("report", f"--config.pretrained={tmp_path / 'run'}"))
        assert any("dataset 'shapes'" in sentence for sentence in report["missing"])
