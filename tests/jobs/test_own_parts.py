"""A method of one's own file is trained, stopped, resumed, evaluated, reported and compared."""

import json

import pytest

from gsg_jax.report import compare
from gsg_jax.search.command import main
from gsg_jax.train import loop as train
from tests.own import OWN_BACKBONE, OWN_DATASET, OWN_METHOD, forgotten
from tests.runs import assert_same, done, job, refused, stop_after, tiny

pytestmark = pytest.mark.extended


@pytest.fixture(autouse=True)
def nothing_stays():
    with forgotten():
        yield


def flags_of(images, workdir):
    return [f"--config={OWN_METHOD}", *tiny("simsiam", images, workdir)[1:]]


def test_a_method_of_ones_own_file_does_what_a_built_in_one_does(
    images, tmp_path, on_one_device, monkeypatch, capsys
):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(train, "stop_signals", stop_after)
        assert done(*flags_of(images, parts))[0]["step"] == 3
    last, _ = done(*flags_of(images, parts))
    wanted, _ = done(*flags_of(images, whole))
    assert_same(parts, last, whole, wanted)
    assert last["method"] == "alignment_uniformity"
    with forgotten():
        evaluate(parts, whole, capsys)


def evaluate(parts, whole, capsys):
    """As another process, which is given no file: the backbone is a built-in one."""
    of_run = f"--config.pretrained={parts}"
    knn, _ = done(*job("knn", of_run, "--config.eval.knn_k=(3,)"))
    assert knn["method"] == "alignment_uniformity" and knn["step"] == 10
    linear, _ = done(*job("linear", of_run, "--config.probe.num_epochs=2"))
    assert 0 <= linear["linear_top1"] <= 1
    report, _ = done(*job("report", of_run))
    assert report["missing"] == [] and "alignment_uniformity" in (parts / "report.html").read_text()
    page = parts.parent / "compare.html"
    assert compare.main([str(parts), str(whole), f"--output={page}"]) == 0
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert compared["parts"]["knn_top1"] == compared["whole"]["knn_top1"]
    assert "uniformity_weight" in (parts / "config.json").read_text() and page.is_file()


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
