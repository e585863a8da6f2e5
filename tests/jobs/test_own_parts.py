"""A method of one's own file is trained, killed, resumed, evaluated, reported and compared."""

import json
import os
import signal
import subprocess
import sys

import pytest

from gsg_jax.report import compare
from gsg_jax.search.__main__ import main
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


def test_a_method_of_ones_own_file_does_what_a_built_in_one_does(
    images, tmp_path, on_one_device, capsys
):
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
        evaluate(killed, whole, capsys)


def evaluate(killed, whole, capsys):
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
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert compared["killed"]["knn_top1"] == compared["whole"]["knn_top1"]
    assert "uniformity_weight" in (killed / "config.json").read_text() and page.is_file()


def test_a_run_of_an_own_backbone_and_data_set_is_evaluated_with_their_files(
    images, tmp_path, on_one_device
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
        # A folder is searched without the run's own data.
        search = [str(tmp_path / "run"), "--outliers", "--k=2", f"--folder={images}", plugins[0]]
        assert main(search) == 0
        report, _ = done(*job("report", f"--config.pretrained={tmp_path / 'run'}"))
        assert any("dataset 'shapes'" in sentence for sentence in report["missing"])
