"""The job that runs every evaluation: one file, one table, and nothing done twice."""

import json

import jax
import pytest

from gsg_jax.jobs import evaluate_all
from gsg_jax.jobs.evaluate_all import as_markdown
from tests.runs import config, done, job, refused, warnings

SMALL = (
    "--config.eval.knn_k=(3,5)",
    "--config.few_label.num_images=(1,)",
    "--config.few_label.num_draws=2",
    "--config.probe.num_epochs=5",
    "--config.lbfgs.num_l2=2",
    "--config.lbfgs.l2=(1e-4,1e-2)",
    "--config.finetune_labels=(0.5,)",
    "--config.optim.backbone_learning_rates=(0.1,)",
    "--config.optim.head_learning_rates=(1.0,)",
    "--config.run.num_epochs=2",
    "--config.transfer.sets=('dtd',)",
)


def command(pretrained, workdir, *flags):
    """The command line; later flags win."""
    common = (f"--config.pretrained={pretrained}", f"--workdir={workdir}")
    return job("evaluate_all", *common, *SMALL, *flags)


def evaluate(pretrained, workdir, *flags):
    """Runs the job: its last line, and what it has said."""
    return done(*command(pretrained, workdir, *flags))


@pytest.mark.usefixtures("on_one_device")
def test_all_figures_are_in_one_file_and_one_table_and_in_the_last_line(
    pretrained, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    last, _ = evaluate(pretrained, tmp_path)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(record["figures"]) == ["knn", "few_label", "probe", "lbfgs", "finetune", "transfer"]
    assert record["about"] == {"method": "simsiam_gsg", "encoder": "pretrained", "step": 6}
    merged = {key: value for part in record["figures"].values() for key, value in part.items()}
    assert last == {"job": "evaluate_all", **record["about"], **merged}
    table = (tmp_path / "evaluation.md").read_text()
    for name in (
        "knn_top1_k5",
        "few_label_1",
        "few_label_1_error",
        "linear_top1",
        "lbfgs_top5",
        "finetune_50pct_top1",
    ):
        assert f"| {name} | {100 * last[name]:.2f} |" in table
    assert "Sets that are not on the machine: dtd." in table

    again, err = evaluate(pretrained, tmp_path)
    assert again == last and err.count("already") == 5 and "top-1" not in err


@pytest.mark.extended
def test_a_job_that_was_killed_resumes_after_what_it_has_found(pretrained, tmp_path, monkeypatch):
    flags = ("--config.parts=('knn','lbfgs','probe')",)
    probe = evaluate_all.score_by_probe
    monkeypatch.setattr(
        evaluate_all, "score_by_probe", lambda *_: (_ for _ in ()).throw(MemoryError)
    )
    refused(*command(pretrained, tmp_path, *flags))
    kept = json.loads((tmp_path / "evaluation.json").read_text())["figures"]
    assert list(kept) == ["knn", "lbfgs"]
    monkeypatch.setattr(evaluate_all, "score_by_probe", probe)
    last, err = evaluate(pretrained, tmp_path, *flags)
    assert err.count("already") == 4  # two parts, and the embeddings of two splits
    assert last["linear_top1"] >= 0 and last["lbfgs_l2"] == kept["lbfgs"]["lbfgs_l2"]


@pytest.mark.extended
def test_a_file_of_other_settings_is_left_alone(pretrained, tmp_path):
    flags = ("--config.parts=('knn',)",)
    evaluate(pretrained, tmp_path, *flags)
    before = (tmp_path / "evaluation.json").read_text()
    said = refused(*command(pretrained, tmp_path, *flags, "--config.run.seed=1"))
    assert "of other settings" in said
    assert (tmp_path / "evaluation.json").read_text() == before


@pytest.mark.extended
def test_jax_settings_that_change_numbers_are_part_of_every_folder_that_is_resumed(
    pretrained, tmp_path
):
    flags = ("--config.parts=('knn',)",)
    tuned = [config("finetune"), f"--config.pretrained={pretrained}", "--config.labels=1.0"]
    tuned += ["--config.run.num_epochs=1", "--config.optim.backbone_learning_rates=(0.1,)"]
    tuned += ["--config.optim.head_learning_rates=(0.1,)", f"--workdir={tmp_path / 'tuned'}"]
    evaluate(pretrained, tmp_path, *flags)
    wanted, _ = done(*tuned)
    line = "jax_default_matmul_precision"
    with jax.default_matmul_precision("bfloat16"):
        assert line in refused(*command(pretrained, tmp_path, *flags))
        assert line in refused(*tuned)
        (tmp_path / "evaluation.json").unlink()
        assert f"{tmp_path / 'features'} holds embeddings of something else (jax " in refused(
            *command(pretrained, tmp_path, *flags)
        )
    assert done(*tuned)[0] == wanted
    evaluate(pretrained, tmp_path, *flags)


@pytest.mark.extended
def test_fine_tuning_of_another_checkpoint_is_never_taken_for_this_ones(pretrained, tmp_path):
    flags = ("--config.parts=('finetune',)", "--config.finetune_labels=(1.0,)")
    first, _ = evaluate(pretrained, tmp_path, *flags)
    (tmp_path / "evaluation.json").unlink()
    more = ("--config.parts=('finetune','knn')", flags[1])  # it is taken up by other parts
    again, _ = evaluate(f"{pretrained}/", tmp_path, *more)
    assert {key: again[key] for key in first} == first and "knn_top1" in again
    (tmp_path / "evaluation.json").unlink()
    said = refused(*command(pretrained, tmp_path, *flags, "--config.encoder=untrained"))
    assert "finetune_100pct holds another" in said


@pytest.mark.extended
def test_parts_can_be_added_and_missing_sets_are_looked_for_again(
    pretrained, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    flags = ("--config.parts=('transfer',)",)
    first, _ = evaluate(pretrained, tmp_path / "new", *flags)
    assert first["transfer_missing"] == ["dtd"]
    monkeypatch.setattr(evaluate_all, "transfer_figures", lambda *_: {"transfer_dtd_top1": 0.5})
    both, err = evaluate(f"{pretrained}/", tmp_path / "new", "--config.parts=('knn','transfer')")
    assert both["transfer_dtd_top1"] == 0.5 and both["knn_top1"] >= 0
    again, _ = evaluate(pretrained, tmp_path / "new", "--config.parts=('knn',)")
    assert "transfer_dtd_top1" not in again
    assert "transfer_dtd_top1" in (tmp_path / "new" / "evaluation.md").read_text()


@pytest.mark.extended
def test_a_set_that_could_not_be_scored_is_named_in_the_table_and_tried_again(
    pretrained, tmp_path, monkeypatch
):
    found = iter([{"transfer_unfit": {"dtd": "its disk failed"}}, {"transfer_dtd_top1": 0.5}])
    monkeypatch.setattr(evaluate_all, "transfer_figures", lambda *_: next(found))
    evaluate(pretrained, tmp_path, "--config.parts=('transfer',)")
    assert "dtd cannot be scored: its disk failed" in (tmp_path / "evaluation.md").read_text()
    again, _ = evaluate(pretrained, tmp_path, "--config.parts=('transfer',)")
    assert again["transfer_dtd_top1"] == 0.5


def test_the_table_has_percents_with_their_intervals_and_no_learning_rate():
    table = as_markdown(
        {"method": "byol", "step": 7},
        {"a_top1": 0.5, "a_top1_interval": [0.25, 0.75], "a_learning_rate": 0.1, "b": 1.0},
    )
    assert table.splitlines() == [
        "# Evaluation: method byol, step 7",
        "",
        "| figure | % | 95 % interval |",
        "|---|---|---|",
        "| a_top1 | 50.00 | 25.00 to 75.00 |",
        "| b | 100.00 |  |",
    ]


@pytest.mark.extended
def test_a_share_with_one_image_a_class_is_left_out_and_named(pretrained, tmp_path):
    two = "--config.optim.head_learning_rates=(0.1,1.0)"
    flags = ("--config.parts=('finetune','knn')", "--config.finetune_labels=(0.05,0.5)", two)
    last, err = evaluate(pretrained, tmp_path, *flags)
    assert "finetune_50pct_top1" in last and "knn_top1" in last
    said = "2 labels leave one image a class, so none can be held out"
    assert said in last["finetune_unfit"]["finetune_5pct"]
    assert f"finetune_5pct was left out: {said}" in (tmp_path / "evaluation.md").read_text()
    assert any(said in line for line in warnings(err))
