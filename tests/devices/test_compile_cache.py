"""A run keeps what it has compiled, and a cache that is damaged costs a line, not the run."""

import os
import shutil
import warnings
import zlib

import jax
import numpy as np
import pytest
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

from gsg_jax.devices import compile_cache
from gsg_jax.devices.compile_cache import caching
from gsg_jax.train import loop as train
from tests import runs

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def no_users_folder():
    """As if the user had set no folder."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def hits():
    """What was loaded from a cache, one event each."""
    events = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            events.append(event)

    monitoring.register_event_listener(listen)
    yield events
    monitoring.unregister_event_listener(listen)


def compile_anew():
    """Compiles a small program, whatever this process has compiled before."""

    def add_cube(x):
        return x**3 + x

    return jax.jit(add_cube).lower(np.zeros(3, np.float32)).compile()


def entries(folder):
    return sorted(folder.glob("*-cache"))


def settings():
    return [getattr(jax.config, name) for name in SETTINGS]


def test_a_run_keeps_what_it_compiles_in_its_workdir(tmp_path, no_users_folder, monkeypatch):
    class Compiling:
        def __init__(self, *_):
            pass

        def run(self):
            compile_anew()
            return {}

    monkeypatch.setattr(train, "Pretraining", Compiling)
    before = settings()
    images = runs.write_images(tmp_path / "images")
    flags = runs.tiny("simsiam", images, tmp_path / "run", "--config.eval.knn_every_epochs=0")
    for _ in range(2):  # a cache does not stand in a run's way
        assert runs.call(*flags) == (0, "{}\n", "")
    assert len(entries(tmp_path / "run" / "compilation_cache")) == 1
    assert settings() == before


@pytest.mark.slow
def test_a_second_run_loads_its_step(tmp_path, no_users_folder, hits):
    images = runs.write_images(tmp_path / "images")
    flags = ("--config.run.num_steps=1", "--config.eval.knn_every_epochs=0")
    first, second = tmp_path / "first", tmp_path / "second"
    jax.clear_caches()  # what earlier tests have compiled would be in neither folder
    status, out, said = runs.call(*runs.tiny("simsiam", images, first, *flags))
    assert status == 0, said
    jax.clear_caches()
    kept = first / "compilation_cache"
    assert len(list(kept.glob("jit_train_step-*"))) == 1
    shutil.copytree(kept, second / "compilation_cache")
    hits.clear()
    status, again, said = runs.call(*runs.tiny("simsiam", images, second, *flags))
    assert status == 0 and "warning" not in said
    assert hits and len(entries(second / "compilation_cache")) == len(entries(kept))
    assert runs.figures(again)["state_digest"] == runs.figures(out)["state_digest"]


def test_what_was_compiled_is_loaded_and_each_folder_has_its_own(tmp_path, no_users_folder, hits):
    for name, is_hit in (("a", False), ("a", True), ("b", False), ("a", True)):
        hits.clear()
        with caching(tmp_path / name):
            compile_anew()
        assert len(hits) == is_hit
        assert len(entries(tmp_path / name)) == 1
    jax.jit(lambda x: x - 2).lower(np.zeros(3, np.float32)).compile()
    assert len(entries(tmp_path / "a")) == len(entries(tmp_path / "b")) == 1


def test_the_users_folder_is_used_instead(tmp_path, no_users_folder):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "users"))
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        with caching(tmp_path / "runs"):
            compile_anew()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    assert entries(tmp_path / "users") and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: b"", zlib.compress])
def test_a_damaged_entry_is_told_in_one_line_and_replaced(tmp_path, no_users_folder, capfd, damage):
    with caching(tmp_path):
        compile_anew()
    wholes = {path: path.read_bytes() for path in entries(tmp_path)}
    for path, whole in wholes.items():
        path.write_bytes(damage(whole))
    with caching(tmp_path):
        compile_anew()
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"warning: the compilation cache {tmp_path} cannot be read (")
    with caching(tmp_path):
        compile_anew()
    assert not capfd.readouterr().err
    assert [path for path, whole in wholes.items() if path.read_bytes() == damage(whole)] == []


def test_an_entry_that_cannot_be_written_is_told_in_one_line(tmp_path, no_users_folder, capfd):
    with caching(tmp_path / "a"):
        compile_anew()
    (tmp_path / "b").mkdir()
    for path in entries(tmp_path / "a"):
        (tmp_path / "b" / path.name).symlink_to(tmp_path / "nowhere" / "file")
    with caching(tmp_path / "b"):
        assert compile_anew()(np.ones(3, np.float32)).tolist() == [2, 2, 2]
        compile_anew()
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"warning: the compilation cache {tmp_path / 'b'} cannot be written (")
    assert "No such file" in said and said.endswith("compiles what is missing")


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path, no_users_folder, capfd):
    (tmp_path / "file").touch()
    with caching(tmp_path / "file"):
        compile_anew()
    (said,) = capfd.readouterr().err.splitlines()
    assert "cannot be read (FileExistsError" in said


def test_other_warnings_go_their_way(tmp_path):
    with pytest.warns(UserWarning, match="another"), caching(tmp_path):
        warnings.warn("another", stacklevel=1)


def test_the_oldest_entries_beyond_the_bound_are_removed(tmp_path, no_users_folder, monkeypatch):
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 250)
    for n in range(4):
        path = tmp_path / f"jit_f-{n}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (n, n))
    with caching(tmp_path):
        pass
    assert [path.name for path in entries(tmp_path)] == ["jit_f-2-cache", "jit_f-3-cache"]
