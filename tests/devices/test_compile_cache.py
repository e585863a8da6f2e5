"""What is compiled is kept in the user's cache folder, and a cache that fails costs no run."""

import os
import pathlib
import stat

import jax
import numpy as np
import pytest
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

from gsg_jax.devices.compile_cache import cache_folder, use_compile_cache
from gsg_jax.doctor import NOTE, check_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def no_users_folder(tmp_path, monkeypatch):
    """As if the user had set no folder, in a home of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
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


def test_what_was_compiled_is_loaded_from_a_folder_that_nobody_else_can_read(hits):
    for is_hit in (False, True):
        use_compile_cache()
        compile_anew()
        assert len(hits) == is_hit
        assert len(list(cache_folder().glob("*-cache"))) == 1
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_max_size == 2**30


def test_what_a_killed_process_left_half_written_is_compiled_and_written_again(hits):
    use_compile_cache()
    compile_anew()
    (entry,) = cache_folder().glob("*-cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-9])
    next(cache_folder().glob("*-atime")).unlink()
    use_compile_cache_again()
    compile_anew()
    assert not hits and len(entry.read_bytes()) > len(whole) - 9


def use_compile_cache_again():
    """As the next process does."""
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    use_compile_cache()


def test_the_users_folder_is_used_instead(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "users"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    use_compile_cache()
    compile_anew()
    assert list((tmp_path / "users").glob("*-cache")) and not cache_folder().exists()


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path, capfd):
    (tmp_path / "home").touch()
    use_compile_cache()
    assert compile_anew()(np.ones(3, np.float32)).tolist() == [2, 2, 2]
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("warning: the compilation cache cannot be used (")
    assert str(cache_folder()) in said


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_is_not_trusted(mode, hits, capfd):
    use_compile_cache()
    compile_anew()
    cache_folder().chmod(mode)
    use_compile_cache_again()
    compile_anew()
    (said,) = capfd.readouterr().err.splitlines()
    assert not hits and f"{cache_folder()} is another user's, or others may write to it" in said


def test_another_users_folder_is_not_trusted(monkeypatch, capfd):
    cache_folder().mkdir(mode=0o700, parents=True)
    monkeypatch.setattr(os, "getuid", lambda: cache_folder().stat().st_uid + 1)
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert "is another user's" in capfd.readouterr().err


def test_a_relative_folder_which_may_be_somebody_elses_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / ".cache" / "gsg_jax"


def test_each_version_of_jax_and_each_kind_of_processor_has_its_own_folder(tmp_path, monkeypatch):
    found = [cache_folder(), cache_folder()]
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version__", "0.0.1")
        found.append(cache_folder())
    read = pathlib.Path.read_text

    def other_processor(path, *args, **options):
        return read(path, *args, **options).replace(": ", ": other ")

    monkeypatch.setattr(pathlib.Path, "read_text", other_processor)
    found.append(cache_folder())
    assert found[0] == found[1] and len(set(found)) == 3
    assert {folder.parent for folder in found} == {tmp_path / "home" / "gsg_jax"}


def test_a_user_without_a_home_costs_one_line(monkeypatch, capfd):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", no_home)
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None
    (said,) = capfd.readouterr().err.splitlines()
    assert "Could not determine home directory" in said and "JAX_COMPILATION_CACHE_DIR" in said
    assert check_cache().state == NOTE
