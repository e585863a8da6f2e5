"""A workdir is one run's: it is claimed once, and never mixed with another's."""

import json
import os

import pytest

from gsg_jax.config.evaluations import evaluation
from gsg_jax.config.load import as_json, differences, flat, from_record, resolve
from gsg_jax.console import UserError
from gsg_jax.run import workdir as workdirs
from gsg_jax.run.checkpoint import Checkpoints
from gsg_jax.run.lock import writing
from gsg_jax.run.workdir import read_config
from tests.runs import hashes
from tests.small import load, small_config


def claim(workdir, config):
    """What a run does with its folder until its first checkpoint."""
    workdirs.check_workdir(workdir, config)
    with writing(workdir):
        workdirs.check_workdir(workdir, config)
        workdirs.record_run(workdir, config, {})


def refusal(workdir, config):
    before = hashes(workdir) if workdir.is_dir() else workdir.exists()
    with pytest.raises(UserError) as error:
        claim(workdir, config)
    assert before == (hashes(workdir) if workdir.is_dir() else workdir.exists())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_claimed_folder_holds_the_config_and_is_claimed_again_unchanged(tmp_path):
    config, workdir = small_config("byol"), tmp_path / "a" / "b"
    claim(workdir, config)
    recorded = flat(json.loads((workdir / "config.json").read_text()))
    assert recorded["method.target"] == "ema" and recorded["views.crop_area"] == [0.7, 1.0]
    assert recorded.keys() == flat(config).keys()
    before = hashes(workdir)
    claim(workdir, config)
    assert hashes(workdir) == before and before.keys() == {
        "config.json",
        "identity.json",
        "run.lock",
    }


def test_a_record_from_before_an_option_of_its_method_has_its_default(tmp_path):
    config = small_config("simsiam_gsg")
    claim(tmp_path, config)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["method"].pop("guide") == "closest"
    (tmp_path / "config.json").write_text(json.dumps(record))
    claim(tmp_path, config)
    config.method.guide = "farthest"
    assert "method.guide (closest there, farthest here)" in refusal(tmp_path, config)


def test_a_folder_of_another_config_is_refused_and_the_differing_keys_are_named(tmp_path):
    config = small_config("byol")
    claim(tmp_path, config)
    config.run.seed = 7
    config.views.crop_area = (0.3, 1.0)
    message = refusal(tmp_path, config)
    assert "run.seed (0 there, 7 here)" in message
    assert "views.crop_area ([0.7, 1.0] there, [0.3, 1.0] here)" in message
    assert str(tmp_path) in message and "another --workdir" in message


def test_a_run_goes_on_with_other_threads_and_more_patience_and_its_record_says_so(tmp_path):
    config = small_config("byol")
    claim(tmp_path, config)
    config.data.update({"num_threads": 3, "num_processes": 4, "prefetch": 5})
    config.run.update({"fsdp": 2, "keep_checkpoints": 6, "keep_every": 7000})
    config.run.update({"watchdog_seconds": 10.0, "report": False, "wandb_project": "mine"})
    config.optim.max_skipped_steps = 9
    claim(tmp_path, config)
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert not differences(config, recorded)


def test_a_finished_run_alone_may_differ_in_length(tmp_path, monkeypatch):
    config = small_config("byol")
    config.run.num_epochs = 2
    claim(tmp_path, config)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    longer = config.copy_and_resolve_references()
    longer.run.num_epochs = 3
    line = "2 there, 3 here.*once it is finished, a greater length continues it"
    with pytest.raises(UserError, match=line):
        workdirs.check_workdir(tmp_path, longer)
    (tmp_path / "figures.json").write_text('{"step": 8}')
    with pytest.raises(UserError, match="2 there, 3 here"):  # its checkpoint is damaged
        workdirs.check_workdir(tmp_path, longer)
    monkeypatch.setattr(workdirs, "damage", lambda path: path.name == "18" and "it is of step 8")
    assert workdirs.check_workdir(tmp_path, longer) == 8
    (tmp_path / "checkpoints" / "18").mkdir()  # a copy of 8
    assert workdirs.check_workdir(tmp_path, longer) == 8
    assert workdirs.check_workdir(tmp_path, config) is None
    for num_steps in (7, 8):
        with pytest.raises(UserError, match=f"finished at step 8, .* ends at step {num_steps}"):
            workdirs.resume(tmp_path, longer, {}, num_steps)
    (tmp_path / "identity.json").unlink()
    record = workdirs.resume(tmp_path, longer, {}, 12)
    assert read_config(tmp_path)["run"]["num_epochs"] == 2
    record()
    assert read_config(tmp_path)["run"]["num_epochs"] == 3
    assert workdirs.extended_from(tmp_path) == [8] and not (tmp_path / "figures.json").exists()
    longer.run.num_epochs = 4
    assert workdirs.check_workdir(tmp_path, longer) == 8  # nothing later is saved
    (tmp_path / "checkpoints" / "9").mkdir()
    with pytest.raises(UserError, match="3 there, 4 here"):
        workdirs.check_workdir(tmp_path, longer)


@pytest.mark.parametrize("text", [b"", b'{"run": {"seed": 0}', b"[]", b"null", b"\xff\xfe\x00{"])
def test_a_damaged_record_is_refused_and_left_as_it_is(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    message = refusal(tmp_path, small_config("byol"))
    assert "config.json is damaged" in message and "another --workdir" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("method.name", x) for x in ({}, None, 3)],
        *[("data.dir", x) for x in ("a\0b", "\ud800", [], False)],
        *[("eval.min_rank_share", x) for x in ("x", {}, None, True, 10**400)],
        *[("eval.few_label", x) for x in ("true", 1)],
        ("views.std", 0.5),
        ("init_from", 1),
    ],
)
def test_a_record_with_a_value_of_another_type_is_damaged(tmp_path, key, value):
    claim(tmp_path, small_config("byol"))
    record = json.loads((tmp_path / "config.json").read_text())
    group, _, name = key.rpartition(".")
    (record[group] if group else record)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"config.json is damaged .{key} is "):
        read_config(tmp_path)


@pytest.mark.parametrize("name", workdirs.WRITTEN)
def test_a_folder_with_a_runs_files_but_no_record_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("not a run's")
    message = refusal(tmp_path, small_config("byol"))
    assert name in message and "no config.json" in message


@pytest.mark.parametrize("name", workdirs.FOLDERS)
def test_a_file_in_place_of_a_folder_of_the_run_is_refused(tmp_path, name):
    claim(tmp_path, small_config("byol"))
    (tmp_path / name).write_text("mine")
    assert f"{tmp_path / name} is not a folder" in refusal(tmp_path, small_config("byol"))


def test_other_files_in_a_folder_do_not_matter_and_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path, small_config("byol"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        message = refusal(workdir, small_config("byol"))
        assert f"--workdir={workdir} cannot be written" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_record_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "config.json").mkdir()
    assert "config.json" in refusal(tmp_path, small_config("byol"))


def test_reading_a_record_where_there_is_none_names_the_fix(tmp_path):
    with pytest.raises(UserError, match="holds no run .* give the --workdir of one"):
        workdirs.read_config(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json is damaged .no group method."):
        workdirs.read_config(tmp_path)


def test_a_record_of_an_earlier_version_gets_the_keys_it_lacks(tmp_path):
    config = resolve(load("byol", "cifar10"))
    record = json.loads(as_json(config))
    del record["model"]["patch_size"], record["views"]["local_size"]
    del record["model"]["projector_end"]
    del record["method"]["ema_schedule"], record["data"]["num_processes"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    read = from_record(workdirs.read_config(tmp_path))
    assert (read.model.patch_size, read.views.local_size) == (16, 16)
    assert read.model.projector_end == "batch_norm"
    assert read.method.ema_schedule == "constant" and read.data.num_processes == 0
    claim(tmp_path, config)  # the same run, which goes on
    config.views.local_size = 8
    assert "views.local_size" in refusal(tmp_path, config)


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_it_is_made(tmp_path):
    workdir = tmp_path / os.fsdecode(b"\xff") / "run"
    assert "checkpoints need a name in UTF-8" in refusal(workdir, small_config("byol"))
    claimed = workdirs.claimed_for_evaluation(workdir, small_config("byol"), "", {})
    with pytest.raises(UserError, match="UTF-8"), claimed:
        pass
    with pytest.raises(UserError, match="UTF-8"):
        Checkpoints(workdir, read_only=True)


def test_an_evaluation_resumes_with_another_batch_size(tmp_path):
    asked = evaluation("finetune")

    def claim():
        with workdirs.claimed_for_evaluation(tmp_path / "x", asked, "digest", {"images": 3}):
            pass

    claim()
    asked.eval.batch_size = 7
    claim()
    asked.run.held_out = 0.3
    with pytest.raises(UserError, match=r"differs in run\.held_out \(0\.2 there, 0\.3 here\)"):
        claim()
