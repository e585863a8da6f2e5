"""metrics.jsonl holds the steps of one uninterrupted run, whatever happened to its processes."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gsg_jax.console import UserError, explain
from gsg_jax.run.files import read_lines, read_object, write_atomically
from gsg_jax.run.metrics import MetricsLog
from gsg_jax.run.starts import read_starts

CLOCK = {"views_per_second": 10.0, "interval_seconds": 0.5, "train_seconds": 1.5}


def write(folder, first_step, steps, clock=CLOCK, copy=None):
    """Logs steps as a run does; copy gets them too."""
    writer = MetricsLog(folder, first_step, copy)
    for step in steps:
        writer.write(step, {"epoch": step / 3, "loss": -1 / 3**step}, clock)
    writer.flush()
    writer.close()
    return writer


def events(folder):
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_a_line_holds_the_step_and_its_figures_and_the_clock_has_a_file_of_its_own(tmp_path):
    write(tmp_path, 0, [5])
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 5, "epoch": 5 / 3, "loss": -1 / 243}]
    assert read_lines(tmp_path / "throughput.jsonl") == [{"step": 5, **CLOCK}]


def test_lines_of_steps_that_will_be_done_again_are_dropped_and_the_bytes_are_the_same(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    write(tmp_path / "whole", 0, [1, 2, 3, 4])
    write(tmp_path / "parts", 0, [1, 2, 3])
    writer = write(tmp_path / "parts", 2, [3, 4])
    assert [line["step"] for line in writer.past] == [1, 2]
    whole, parts = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_half_a_last_line_is_dropped(tmp_path):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert [line["step"] for line in read_lines(path)] == [1]
    write(tmp_path, 1, [2])
    assert path.read_bytes() == whole


NO_FLOAT = b'{"step": 2, "loss": 1' + b"0" * 400 + b"}"


@pytest.mark.parametrize(
    "damage", [b"{oops}", b"\x00\x00", b"3", b"{}", b"\xff", b"", NO_FLOAT], ids=range(7)
)
def test_a_damaged_line_is_named_and_the_file_left_as_it_is(tmp_path, damage):
    write(tmp_path, 0, [1])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + damage + b"\n" + path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(UserError, match="metrics.jsonl, line 2 is damaged.*another --workdir"):
        MetricsLog(tmp_path, 5)
    assert path.read_bytes() == before


def test_the_seconds_of_earlier_processes_are_those_up_to_the_first_step(tmp_path):
    assert write(tmp_path, 0, [1]).seconds_before == 0
    write(tmp_path, 1, [2], CLOCK | {"train_seconds": 9.0})
    assert write(tmp_path, 1, []).seconds_before == 1.5


def test_a_line_can_be_read_while_the_run_goes_on(tmp_path):
    writer = MetricsLog(tmp_path, 0)
    writer.write(1, {"loss": 0.5}, CLOCK)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    writer.close()


def test_tensorboard_gets_every_figure_and_is_told_which_steps_are_done_again(tmp_path):
    write(tmp_path, 0, [1, 2])
    write(tmp_path, 1, [2])
    steps = [e for e in events(tmp_path) if e.HasField("summary")]
    assert sorted(e.step for e in steps) == [1, 2, 2]
    figures = {value.tag: value.simple_value for value in steps[0].summary.value}
    assert figures.keys() == {"epoch", "loss", *CLOCK}
    assert figures["loss"] == pytest.approx(-1 / 3)
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [2]


def test_a_file_that_vanishes_is_told(tmp_path):
    writer = MetricsLog(tmp_path, 0)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="metrics.jsonl has vanished"):
        writer.flush()
    writer.close()


def test_a_full_disk_is_named_by_its_folder(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, 0)
    log._files[0].close()
    log._files = (open("/dev/full", "a"), *log._files[1:])
    for use in (lambda: log.write(1, {"loss": 1.0}, {}), log.close):
        with pytest.raises(OSError) as error:
            use()
        status, line = explain(error.value)
        assert (status, line.partition(";")[0]) == (1, f"{tmp_path}: No space left on device")


def test_a_failed_atomic_write_leaves_the_old_text(tmp_path):
    path = tmp_path / "record"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("steps", "line"), [((3, 3, 6), 2), ((3, -3, 6), 2), ((0, 3), 1)])
def test_lines_of_doubled_negative_or_shuffled_steps_are_damaged(tmp_path, steps, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    with pytest.raises(UserError, match=f"metrics.jsonl, line {line} is damaged .step .* after"):
        read_lines(path)


def test_missing_lines_are_warned_of_and_the_run_goes_on(tmp_path, capsys):
    log = MetricsLog(tmp_path, 0, every=2)
    for step in (2, 4, 5, 6, 8):
        log.write(step, {"loss": 1.0}, CLOCK)
    log.close()
    MetricsLog(tmp_path, 8, every=2).close()
    assert capsys.readouterr().err == ""
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if '"step": 4' not in x and '"step": 6' not in x))
    MetricsLog(tmp_path, 8, every=2).close()
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"warning: {path} lacks 2 logged steps, the first is 4")


@pytest.mark.parametrize("read", [read_lines, read_object, read_starts])
def test_only_files_are_read_since_pipes_and_devices_may_never_end(tmp_path, read):
    (tmp_path / "starts.jsonl").symlink_to("/dev/null")
    path = tmp_path / ("starts.jsonl" if read is not read_starts else "")
    with pytest.raises(UserError, match="starts.jsonl is damaged .not a file."):
        read(path)
