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
    """No training: losses that are given."""
    monkeypatch.setattr(doctor, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "tiny_steps", lambda: iter([0.5, 0.25]))


def test_a_sound_machine_is_ready_and_the_step_is_a_real_one(capsys, tmp_path, monkeypatch):
    config = doctor.pretraining("default")
    config.views.update(size=12, blur_probability=(0.0,), jitter_probability=0.0)  # compile fast
    monkeypatch.setattr(doctor, "pretraining", lambda recipe: config)
    monkeypatch.setattr(doctor, "STEP_SECONDS", 0.1)
    status, told, shown = findings(capsys, f"--workdir={tmp_path / 'not' / 'yet'}")
    assert status == 0 and told["ready"] is True
    assert told["devices"]["count"] == 8 and told["versions"]["jax"] == jax.__version__
    assert told["train step"]["steps_per_second"] > 0
    assert told["disk"]["folder"] == str(tmp_path) and not list(tmp_path.iterdir())
    assert "first step after" in shown


def refuse(**_):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("name", "value", "check", "state", "hint"),
    [
        ("tiny_steps", lambda: iter([0.5, float("nan")]), "train step", "STOP", "network is nan"),
        ("PACKAGES", ("jax", "no-such-package"), "versions", "STOP", "install gsg_jax again"),
        ("tempfile.TemporaryFile", refuse, "disk", "STOP", "--workdir"),
        ("LEAST_DISK", 2**62, "disk", "note", "--workdir"),
        ("LEAST_MEMORY", 2**62, "memory", "note", "--config.data.batch_size"),
        ("ACCELERATORS", {__file__: "cuda"}, "devices", "note", "[cuda]"),  # JAX does not see it
    ],
)
def test_what_stops_a_run_is_named_and_what_does_not_is_noted(
    capsys, quick, monkeypatch, name, value, check, state, hint
):
    monkeypatch.setattr(f"gsg_jax.doctor.{name}", value)
    status, told, shown = findings(capsys)
    assert (status, told["ready"]) == ((1, False) if state == "STOP" else (0, True))
    assert told[check]["state"] == state and hint in " ".join(shown.split())
    missing = ["no-such-package"] if check == "versions" else []
    assert told["versions"].get("missing", []) == missing


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(capsys, quick, monkeypatch):
    def fail():
        raise RuntimeError("no backend\nmore lines")

    monkeypatch.setattr(doctor, "check_devices", fail)
    status, told, _ = findings(capsys)
    assert status == 1 and told["devices"]["error"] == "RuntimeError: no backend"
    assert told["train step"]["state"] == "ok"


def test_a_port_in_use_and_prepared_sets_are_noted(capsys, quick, tmp_path):
    (tmp_path / "flowers" / "1.0.0").mkdir(parents=True)
    (tmp_path / "flowers" / "1.0.0" / "dataset_info.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _, told, _ = findings(capsys, f"--port={port}", f"--data_dir={tmp_path}")
    assert told["port"] == {"state": "note", "port": port, "is_free": False}
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


@pytest.mark.parametrize(
    "flag", ["--port=0", "--port=70000", "--prot=1", "--workdir=~nosuchuser/x"]
)
def test_wrong_usage_is_reported(capsys, flag):
    with pytest.raises(SystemExit) as ended:
        doctor.main([flag])
    assert ended.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err
