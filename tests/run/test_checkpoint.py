"""Checkpoints give back every bit, are whole or absent, and the newest and the best are kept."""

import functools
import hashlib
import json
import pathlib
import shutil
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh

from gsg_jax.console import UserError
from gsg_jax.devices.mesh import by_image, make_mesh, replicated
from gsg_jax.run import integrity
from gsg_jax.run.checkpoint import Checkpoints, read_newest, state_digest
from gsg_jax.train.state import TrainState, init_state
from tests.runs import hashes
from tests.small import small_experiment


def state_of(step, **leaves):
    """A small state, whose arrays differ from step to step."""
    empty = dict.fromkeys(("batch_stats", "target_params", "target_batch_stats"), {})
    params = {"kernel": jnp.arange(6.0).reshape(2, 3) / 3 + step, **leaves}
    return TrainState(step=jnp.int32(step), params=params, opt_state=(), memory={}, **empty)


def save(workdir, *steps):
    with Checkpoints(workdir) as checkpoints:
        for step in steps:
            checkpoints.save(state_of(step), 0.5)


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["byol", "moco_v2", "directpred"])
def test_the_state_of_a_method_comes_back_bit_for_bit(tmp_path, name):
    mesh = make_mesh(16)
    init = functools.partial(init_state, small_experiment(name), 1)
    state = jax.jit(init, out_shardings=replicated(mesh))()
    rng = np.random.default_rng(0)

    def changed(x):
        if x.dtype == bool:
            return ~np.asarray(x)
        return rng.normal(size=x.shape).astype(x.dtype) if x.ndim else np.asarray(x) + 5

    noisy = jax.tree.map(changed, state)
    noisy = jax.device_put(noisy, replicated(mesh))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(noisy, None)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_step() == 5
        back = checkpoints.restore(5, state)
    chex.assert_trees_all_equal(back, noisy, strict=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, noisy)
    assert jax.tree.map(lambda x: x.sharding, back) == jax.tree.map(lambda x: x.sharding, noisy)
    assert state_digest(back) == state_digest(noisy) != state_digest(state)


def test_numbers_that_are_not_ordinary_come_back_bit_for_bit(tmp_path):
    odd = jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45, 3.4e38], jnp.float32)
    state = state_of(1, odd=odd, half=odd.astype(jnp.bfloat16))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, None)
        back = checkpoints.restore(1, state)
    assert state_digest(back) == state_digest(state)


def test_the_newest_and_the_best_are_kept_in_a_reopened_folder_too(tmp_path):
    first, second = {1: 0.3, 2: None, 3: 0.9, 4: 0.5}, {5: None, 6: 0.8, 7: None}
    for scores in (first, second):
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            for step, score in scores.items():
                checkpoints.save(state_of(step), score)
        assert steps_of(tmp_path) == ([3, 4] if scores is first else [3, 6, 7])


def test_every_so_many_steps_one_is_kept(tmp_path):
    with Checkpoints(tmp_path, 1, 4) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(state_of(step), None)
    assert steps_of(tmp_path) == [4, 8, 10]
    with Checkpoints(tmp_path, 1, 8) as checkpoints:
        checkpoints.save(state_of(11), None)
    assert steps_of(tmp_path) == [8, 11]


def test_a_save_that_was_cut_off_counts_for_nothing(tmp_path):
    save(tmp_path, 1)
    whole = tmp_path / "checkpoints" / "1"
    shutil.copytree(whole, tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    shutil.rmtree(tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "default")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_step() == 1
        checkpoints.save(state_of(2), None)
        assert state_digest(checkpoints.restore(2, state_of(0))) == state_digest(state_of(2))


def test_a_state_may_be_donated_once_save_has_returned(tmp_path):
    state = state_of(1, big=jnp.ones((500, 1000)))
    digest = state_digest(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, None)
        jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)(state)
        back = checkpoints.restore(1, state_of(0, big=jnp.zeros((500, 1000))))
    assert state_digest(back) == digest


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [halve, flip, pathlib.Path.unlink])
def test_a_damaged_newest_checkpoint_is_reported_and_kept_and_the_one_before_used(
    tmp_path, capsys, damage
):
    """A flipped bit in the data is seen by the digests only."""
    save(tmp_path, 1, 2)
    newest = tmp_path / "checkpoints" / "2"
    damage(max((newest / "default").rglob("d/*"), key=lambda path: path.stat().st_size))
    contents = hashes(newest)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.newest_step() == 1 and hashes(newest) == contents
    assert capsys.readouterr().err.count("\n") == 1
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_step() == 1
        assert state_digest(checkpoints.restore(1, state_of(0))) == state_digest(state_of(1))
        checkpoints.save(state_of(2), None)
    told = capsys.readouterr().err
    assert told.startswith("warning: the checkpoint of step 2 is damaged (default/")
    assert told.endswith(f"is kept in {tmp_path}/damaged/2: step 1 is used\n")
    assert hashes(tmp_path / "damaged" / "2") == contents and steps_of(tmp_path) == [1, 2]


def test_where_none_is_whole_this_is_told_in_one_line_and_nothing_is_moved(tmp_path):
    save(tmp_path, 1)
    for path in (tmp_path / "checkpoints" / "1").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    before = hashes(tmp_path)
    for read_only in (False, True):
        with pytest.raises(UserError, match="none of the 1 checkpoints in .* is whole") as error:
            Checkpoints(tmp_path, read_only=read_only)
        assert f"{tmp_path}/checkpoints" in str(error.value) and "\n" not in str(error.value)
    assert hashes(tmp_path) == before


def test_a_damaged_score_of_an_older_checkpoint_does_not_bar_the_newest(tmp_path, capsys):
    save(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text("")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_step() == 2
    told = capsys.readouterr().err
    assert told == (
        "warning: the checkpoint of step 1 is damaged (metrics/metrics is not a score) "
        f"and is kept in {tmp_path}/damaged/1: step 2 is used\n"
    )


def test_a_second_damaged_checkpoint_of_a_step_does_not_replace_the_first(tmp_path):
    for _ in range(2):
        with Checkpoints(tmp_path) as checkpoints:
            for step in range((checkpoints.newest_step() or 0) + 1, 3):
                checkpoints.save(state_of(step), None)
        (tmp_path / "checkpoints" / "2" / "default" / "manifest.ocdbt").write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_step() == 1
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["2", "2-2"]


def test_the_digests_are_those_of_the_files(tmp_path):
    save(tmp_path, 1)
    checkpoint = tmp_path / "checkpoints" / "1"
    digests = json.loads((checkpoint / "default" / "digests.json").read_text())["sha256"]
    found = hashes(checkpoint)
    assert {name: found[name] for name in digests} == digests
    unlisted = {pathlib.Path(name).name for name in found.keys() - digests.keys()}
    assert unlisted == {"_CHECKPOINT_METADATA", "commit_success.txt", "digests.json"}


def test_a_save_goes_on_while_the_steps_do(tmp_path, monkeypatch):
    """What takes long, hashing among it, is waited for when the next is saved, or at the end."""
    go_on, write = threading.Event(), integrity.write_digests

    def write_later(arrays):
        assert go_on.wait(60)
        write(arrays)

    monkeypatch.setattr(integrity, "write_digests", write_later)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), None)
        assert not (tmp_path / "checkpoints" / "1").exists()
        go_on.set()
        checkpoints.save(state_of(2), None, wait=True)
        assert steps_of(tmp_path) == [1, 2]


def test_a_sharded_state_comes_back_bit_for_bit_on_fewer_devices_and_on_more(tmp_path):
    pair = [Mesh(np.array(jax.devices()[:n]), ("data",)) for n in (8, 2)]
    state = state_of(1, big=jnp.arange(64.0).reshape(16, 4) / 3)
    for there, here in (pair, pair[::-1]):
        folder = tmp_path / str(there.size)

        def placed(mesh, x):
            split = x.ndim == 2 and x.shape[0] == 16
            return jax.device_put(x, by_image(mesh) if split else replicated(mesh))

        with Checkpoints(folder) as checkpoints:
            checkpoints.save(jax.tree.map(functools.partial(placed, there), state), None)
        like = jax.tree.map(functools.partial(placed, here), state_of(0, big=jnp.zeros((16, 4))))
        with Checkpoints(folder) as checkpoints:
            back = checkpoints.restore(1, like)
        assert state_digest(back) == state_digest(state)
        assert back.params["big"].sharding == like.params["big"].sharding


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    save(tmp_path, 1)
    before = hashes(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300_000))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="has 300.0 kB free: make room"):
            checkpoints.save(state_of(2), None)
    assert hashes(tmp_path) == before


def test_a_run_is_recorded_only_once_there_is_room_for_its_checkpoint(tmp_path, monkeypatch):
    recorded, room = [], shutil.disk_usage(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: room._replace(free=1000))
        with pytest.raises(UserError, match="make room"):
            checkpoints.save(state_of(4), None, record=lambda: recorded.append(4))
        monkeypatch.undo()
        checkpoints.save(state_of(5), None, record=lambda: recorded.append(5))
    assert recorded == [5] and steps_of(tmp_path) == [5]


def test_a_folder_that_vanished_is_told(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        shutil.rmtree(tmp_path / "checkpoints")
        with pytest.raises(UserError, match="No such file or directory.*same command resumes"):
            checkpoints.save(state_of(1), None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("NOT_FOUND: writing \"x\" [os_error_code='2']"), "No such file or directory"),
        (ValueError("first line\nsecond line " + "long " * 99), "first line second line"),
    ],
)
def test_what_orbax_raises_becomes_one_short_line(tmp_path, monkeypatch, error, reason):
    def fail(*_args, **_kwargs):
        raise error

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
        with pytest.raises(UserError) as told:
            checkpoints.save(state_of(1), None)
    assert reason in str(told.value) and "\n" not in str(told.value)
    assert str(tmp_path) in str(told.value) and len(str(told.value)) < 400


def test_the_first_error_is_the_one_to_tell(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the loss is nan"):
        with Checkpoints(tmp_path):
            patch.setattr(ocp.CheckpointManager, "close", fail)
            raise UserError("the loss is nan")


def test_the_digest_tells_apart_what_differs_in_any_bit_shape_type_or_name():
    trees = [
        {"a": np.zeros(4, np.float32)},
        {"a": -np.zeros(4, np.float32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.array([0, 0, 0, 1e-45], np.float32)},
        {"a": np.zeros(4, np.float32), "b": np.zeros(0, np.float32)},
    ]
    assert len({state_digest(tree) for tree in trees}) == len(trees)
    assert state_digest(trees[0]) == state_digest({"a": jnp.zeros(4)})


def test_a_copied_checkpoint_is_not_the_step_that_it_is_called(tmp_path, capsys):
    save(tmp_path, 1, 15)
    folder = tmp_path / "checkpoints"
    for name in ("18", "3000000000", "2147483648", "-7", "007"):
        shutil.copytree(folder / "15", folder / name)
    shutil.copytree(folder / "15", tmp_path / "other" / "checkpoints" / "7")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.newest_step() == 15
    (told,) = capsys.readouterr().err.splitlines()
    assert (
        told == "warning: the checkpoint of step 18 is damaged (it is of step 15): step 15 is used"
    )
    with Checkpoints(tmp_path, last_step=20) as checkpoints:
        assert checkpoints.newest_step() == 15
        checkpoints.save(state_of(18), None)
    told = "\n".join(capsys.readouterr().err.splitlines())
    assert "step 3000000000 is damaged (no run has more than 2147483647 steps)" in told
    assert {path.name for path in (tmp_path / "damaged").iterdir()} >= {"18", "3000000000"}
    with Checkpoints(tmp_path) as checkpoints:
        back = checkpoints.restore(checkpoints.newest_step(), state_of(0))
    assert state_digest(back) == state_digest(state_of(18))
    with pytest.raises(UserError, match="none of the 1 .*step 7: it is of step 15"):
        Checkpoints(tmp_path / "other", read_only=True)


def test_a_checkpoint_beyond_the_runs_last_step_is_another_runs(tmp_path):
    save(tmp_path, 15)
    before = hashes(tmp_path)
    with pytest.raises(UserError, match="15 is of another run: this one has 14 steps; move it"):
        Checkpoints(tmp_path, last_step=14)
    assert hashes(tmp_path) == before


def test_a_checkpoint_of_another_type_is_refused(tmp_path):
    save(tmp_path, 1)
    like = state_of(0)
    like = like.replace(params={"kernel": like.params["kernel"].astype(jnp.bfloat16)})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(UserError, match=r"kernel is float32\[2, 3\] there, bfloat16\[2, 3\]"):
            checkpoints.restore(1, like)


@pytest.mark.parametrize("name", ["/dev/null", "../" * 20 + "dev/null", "default/device"])
def test_only_a_checkpoints_own_files_are_read(tmp_path, name):
    save(tmp_path, 4)
    checkpoint = tmp_path / "checkpoints" / "4"
    digests = json.loads((checkpoint / integrity.DIGESTS).read_text())
    digests["sha256"][name] = hashlib.sha256(b"").hexdigest()
    (checkpoint / integrity.DIGESTS).write_text(json.dumps(digests))
    if name.startswith("default"):
        (checkpoint / name).symlink_to("/dev/null")
    else:
        (checkpoint / name).stat()  # it is there
    assert integrity.damage(checkpoint) in (f"{name} is not in it", "device is not a file")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"knn_top1": 1' + "0" * 400 + "}"], ids=range(2))
def test_json_that_python_cannot_hold_is_damage(tmp_path, text):
    save(tmp_path, 4)
    checkpoint = tmp_path / "checkpoints" / "4"
    (checkpoint / "metrics" / "metrics").write_text(text)
    assert integrity.score_damage(checkpoint) == "metrics/metrics is not a score"
    (checkpoint / integrity.DIGESTS).write_text(text)
    assert integrity.damage(checkpoint) == f"{integrity.DIGESTS} is not JSON of digests"


def test_a_reader_takes_no_older_checkpoint_because_the_newest_went_away(tmp_path, monkeypatch):
    for step in (40, 56):  # the best, and the newest
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)

    def damage(path):
        if path.name != "56":
            return None
        path.rmdir()
        (path.parent / "63").mkdir()
        return "a file is missing"

    monkeypatch.setattr(integrity, "damage", damage)
    assert read_newest(tmp_path, lambda checkpoints, step: None) == (63, None)


def test_whatever_orbax_raises_is_one_line(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, read_only=True)

    def metadata(arrays):
        raise Exception("Encountered error while reading array index")

    monkeypatch.setattr(integrity, "metadata", metadata)
    with pytest.raises(UserError, match="7 cannot be read .Encountered error"):
        checkpoints.shapes(7, ("params",))
