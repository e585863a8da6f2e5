"""The doctor names what would stop a run, and leaves nothing behind."""

import json
import socket

import jax
import pytest

from gsg_jax import doctor


def findings(capsys, *flags):
    """Exit status, and the last line."""
    status = doctor.main(list(flags))
    told = capsys.readouterr()
    return status, json.loads(told.out.splitlines()[-1]), told.err


@pytest.fixture
def quick(monkeypatch):
    """No training: losses of a given list."""

    def give(*losses):
        monkeypatch.setattr(doctor, "STEP_SECONDS", 0.0)
        monkeypatch.setattr(doctor, "tiny_steps", lambda: iter(losses))

    give(0.5, 0.25)
    return give


def test_a_sound_machine_is_ready_and_the_step_is_a_real_one(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "STEP_SECONDS", 0.1)
    status, told, shown = findings(capsys, f"--workdir={tmp_path / 'not' / 'yet'}")
    assert status == 0 and told["ready"] is True
    assert told["devices"]["count"] == 8 and told["versions"]["jax"] == jax.__version__
    assert told["train step"]["steps_per_second"] > 0
    assert told["disk"]["folder"] == str(tmp_path) and not list(tmp_path.iterdir())
    assert "first step after" in shown


def test_a_loss_that_is_not_finite_stops(capsys, quick):
    quick(0.5, float("nan"))
    status, told, shown = findings(capsys)
    assert status == 1 and told["ready"] is False and told["train step"]["state"] == "STOP"
    assert "tiny network is nan" in shown


def test_a_missing_package_stops_and_is_named(capsys, quick, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("jax", "no-such-package"))
    status, told, shown = findings(capsys)
    assert status == 1 and told["versions"]["missing"] == ["no-such-package"]
    assert "requirements.txt" in shown


def test_a_folder_that_cannot_be_written_stops(capsys, quick, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    status, told, shown = findings(capsys)
    assert status == 1 and told["disk"]["state"] == "STOP" and "--workdir" in shown


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(capsys, quick, monkeypatch):
    def fail():
        raise RuntimeError("no backend\nmore lines")

    monkeypatch.setattr(doctor, "check_devices", fail)
    status, told, _ = findings(capsys)
    assert status == 1 and told["devices"]["error"] == "RuntimeError: no backend"
    assert told["train step"]["state"] == "ok"


@pytest.mark.parametrize(
    ("check", "limit", "hint"),
    [("disk", "LEAST_DISK", "--workdir"), ("memory", "LEAST_MEMORY", "--config.data.batch_size")],
)
def test_little_room_is_noted_and_a_run_still_goes(capsys, quick, monkeypatch, check, limit, hint):
    monkeypatch.setattr(doctor, limit, 2**62)
    status, told, shown = findings(capsys)
    assert status == 0 and told[check]["state"] == "note" and hint in " ".join(shown.split())


def test_an_accelerator_that_jax_does_not_see_is_noted(capsys, quick, tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(doctor, "ACCELERATORS", {str(tmp_path / "nvidia0"): "cuda"})
    _, told, shown = findings(capsys)
    assert told["devices"]["state"] == "note" and "[cuda]" in shown


def test_a_port_in_use_is_noted(capsys, quick):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _, told, _ = findings(capsys, f"--port={port}")
    assert told["port"] == {"state": "note", "port": port, "is_free": False}


def test_prepared_sets_are_named(capsys, quick, tmp_path):
    (tmp_path / "flowers" / "1.0.0").mkdir(parents=True)
    (tmp_path / "flowers" / "1.0.0" / "dataset_info.json").write_text("{}")
    _, told, _ = findings(capsys, f"--data_dir={tmp_path}")
    assert told["image sets"]["names"] == ["flowers"]


def test_the_users_cache_is_reported_with_its_size(capsys, quick, tmp_path):
    (tmp_path / "entry").write_bytes(bytes(100))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        _, told, _ = findings(capsys)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert told["compilation cache"] == {"state": "ok", "folder": str(tmp_path), "bytes": 100}


@pytest.mark.parametrize("flag", ["--port=0", "--port=70000", "--prot=1"])
def test_wrong_usage_is_reported(capsys, flag):
    with pytest.raises(SystemExit) as ended:
        doctor.main([flag])
    assert ended.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err
