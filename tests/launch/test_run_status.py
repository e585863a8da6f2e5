"""run_status.sh and detached.sh, with real processes that behave like runs."""

import json
import signal
import time

import pytest

pytestmark = pytest.mark.extended

STOPPED = json.dumps({"job": "pretrain", "step": 40, "num_steps": 100})
DONE = json.dumps({"job": "pretrain", "step": 100, "num_steps": 100})

# Says that it is up, and saves when it is stopped.
WAITS = f"""trap 'echo saved >&2; echo '"'"'{STOPPED}'"'"'; exit 0' TERM
echo up >&2
while :; do sleep 0.05; done"""


@pytest.mark.parametrize(
    ("line", "ended", "status"),
    [
        (DONE, 0, 0),
        (STOPPED, 0, 75),
        (STOPPED, 1, 1),
        ("", 2, 2),
        ("", 137, 137),
        ("", 0, 0),
        (f"{STOPPED}\n{STOPPED}", 0, 75),
        ('{"job": "knn", "knn_top1": 0.5}', 0, 0),
        ('{"step": 100, "num_steps": 9}', 0, 0),
        ('{"num_steps":100,"step":20}', 0, 75),
    ],
)
def test_the_status_says_whether_to_run_again(desk, line, ended, status):
    command = ["bash", "-c", 'printf "%s" "$0"; exit "$1"', line, str(ended)]
    assert desk.call("run_status.sh", *command) == (status, line, "")


def test_ctrl_c_reaches_the_command_which_saves(desk):
    # In the background Ctrl-C is ignored, and no shell started there can trap it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = desk.start("run_status.sh", "bash", "-c", WAITS)
    signal.signal(signal.SIGINT, before)
    assert process.stderr.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (75, f"{STOPPED}\n", "saved\n")


def test_sigterm_reaches_the_command_and_a_second_one_does_not_cut_its_saving_short(desk):
    slow = WAITS.replace("echo saved", "sleep 0.5; echo saved")
    process = desk.start("run_status.sh", "bash", "-c", slow)
    assert process.stderr.readline() == "up\n"
    for _ in range(3):
        process.terminate()
        time.sleep(0.1)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (75, f"{STOPPED}\n")


def wait_for(desk, state: str) -> None:
    for _ in range(200):
        if desk.call("detached.sh", "state")[1] == f"state: {state}\n":
            return
        time.sleep(0.05)
    raise AssertionError(desk.call("detached.sh", "state")[1] + desk.call("detached.sh", "log")[1])


def test_a_detached_run_outlives_its_start_and_stops_on_request(desk):
    assert desk.call("detached.sh", "state")[1] == "state: none\n"
    # Its streams are not those of the caller, or this call would wait for it.
    assert desk.call("detached.sh", "start", "bash", "-c", WAITS) == (0, "", "")
    assert desk.call("detached.sh", "state")[1] == "state: running\n"
    status, _, err = desk.call("detached.sh", "start", "true")
    assert status == 1 and "is active" in err
    for _ in range(100):
        if "up" in desk.call("detached.sh", "log")[1]:
            break
        time.sleep(0.05)
    assert desk.call("detached.sh", "stop")[0] == 0
    wait_for(desk, "stopped")
    log = desk.call("detached.sh", "log", "3")[1].splitlines()
    assert log == ["saved", STOPPED, "ended with status 75"]
    assert desk.call("detached.sh", "stop")[0] == 1


@pytest.mark.parametrize(("ended", "state"), [(0, "done"), (2, "failed")])
def test_a_detached_run_says_how_it_ended(desk, ended, state):
    desk.call("detached.sh", "start", "bash", "-c", f"echo a  b; exit {ended}")
    wait_for(desk, state)
    # No run of another command is known.
    command = ("bash", "-c", f"echo a  b; exit {ended}")
    assert desk.call("detached.sh", "state", *command)[1] == f"state: {state}\n"
    assert desk.call("detached.sh", "state", *command, "--seed=1")[1] == "state: none\n"
    # The next run takes its place.
    desk.call("detached.sh", "start", "bash", "-c", "kill -SEGV $$")
    wait_for(desk, "crashed")
    status, _, err = desk.call("detached.sh", "begin")
    assert status == 2 and err.startswith("usage: ")


def test_a_run_whose_machine_went_down_is_lost(desk):
    folder = desk.root / "runs" / "detached"
    folder.mkdir(parents=True)
    (folder / "pid").write_text("4194305\n")  # above the highest that Linux gives
    assert desk.call("detached.sh", "state")[1] == "state: lost\n"
