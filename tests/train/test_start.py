"""A run may start from the weights of another run."""

import json
import shutil

import jax
import numpy as np
import pytest

from gsg_jax.run.checkpoint import Checkpoints, read_variables
from gsg_jax.train import loop as train
from tests.runs import assert_same, done, hashes, refused, stop_after, tiny

SHORT = "--config.run.num_steps=2"
GROUPS = ("params", "batch_stats", "target_params", "target_batch_stats")


@pytest.fixture(scope="module")
def source(images, tmp_path_factory):
    """The workdir of a short run of SimSiam."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    done(*tiny("simsiam", images, workdir, SHORT, "--config.run.seed=5"))
    return workdir


def state_of_step(workdir, step):
    """Weights and statistics of a checkpoint."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(step, checkpoints.shapes(step, GROUPS))


def are_equal(tree, other):
    """Whether two trees hold the same numbers."""
    return jax.tree.all(jax.tree.map(np.array_equal, tree, other))


@pytest.mark.extended
def test_a_run_starts_from_backbone_and_heads_that_fit_and_resumes_without_their_run(
    images, source, tmp_path, monkeypatch
):
    given, run, parts = tmp_path / "given", tmp_path / "run", tmp_path / "parts"
    shutil.copytree(source, given)
    flags = tiny("byol", images, run, SHORT, f"--config.init_from={given}/")
    flags += ["--config.model.predictor_hidden_width=6", "--config.eval.knn_pixels=true"]
    last, err = done(*flags)
    assert f"starting from the weights of {given}, step 2: backbone, projector; drawn anew: " in err
    assert "anew: predictor, of which it has none that fits\n" in err
    theirs, mine = read_variables(source)[1], state_of_step(run, 0)
    for group in ("params", "batch_stats"):
        for branch in ("backbone", "projector"):
            assert are_equal(mine[group][branch], theirs[group][branch])
            assert are_equal(mine[f"target_{group}"][branch], theirs[group][branch])
    assert not are_equal(state_of_step(run, 2)["params"]["backbone"], theirs["params"]["backbone"])

    with monkeypatch.context() as patch:  # what the seed draws where nothing is taken
        patch.setattr(train, "stop_signals", lambda: stop_after(0))
        patch.setattr(train, "read_start", lambda *_: {"params": {}, "batch_stats": {}})
        done(*flags, f"--workdir={tmp_path / 'drawn'}")
    drawn = state_of_step(tmp_path / "drawn", 0)
    assert are_equal(mine["params"]["predictor"], drawn["params"]["predictor"])
    assert not are_equal(mine["params"]["backbone"], drawn["params"]["backbone"])

    flags.append(f"--workdir={parts}")
    with monkeypatch.context() as patch:
        patch.setattr(train, "stop_signals", lambda: stop_after(0))
        assert done(*flags)[0]["step"] == 0
    shutil.rmtree(given)
    resumed, err = done(*flags)
    assert "resuming from the checkpoint of step 0" in err and "starting from" not in err
    assert_same(parts, resumed, run, last)
    line = refused(*flags, f"--config.init_from={source}")
    assert "init_from" in line and "run of another config" in line


def test_weights_that_cannot_be_taken_are_refused_before_the_workdir_is_touched(
    images, source, tmp_path
):
    flags = tiny("simsiam", images, tmp_path / "new", SHORT)
    (tmp_path / "w.pth").write_text("weights")
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    shutil.copytree(source, other)
    record = json.loads((source / "config.json").read_text())
    record["model"]["width"] = 8  # of a run whose checkpoint is another one's
    (other / "config.json").write_text(json.dumps(record))
    before = hashes(source)
    for path, more, said in (
        (tmp_path / "lost", [], "lost holds no run (no config.json)"),
        (tmp_path / "empty", [], "empty holds no run (no config.json)"),
        (tmp_path / "w.pth", [], "is a file, not the workdir of a run: make one of it by"),
        (source, ["--config.model.width=8"], "differs in model.width (4 there, 8 here): "),
        (source, ["--config.model.bn_epsilon=0.1"], "model.bn_epsilon (1e-05 there, 0.1 here): "),
        (
            other,
            ["--config.model.width=8"],
            "differs in bn1/bias (float32[4] there, float32[8] here)",
        ),
    ):
        assert said in refused(*flags, *more, f"--config.init_from={path}")
        assert not (tmp_path / "new").exists()
    assert hashes(source) == before
