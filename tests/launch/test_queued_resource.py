"""queued_resource.sh gets from the request to the run's end, whatever is taken away meanwhile."""

import shlex

import pytest

from tests.launch.test_launch_arguments import BUCKET, KIND, TPU_VM
from tests.launch.test_tpu_vm import TPUS, WHERE

pytestmark = pytest.mark.extended

VARIABLES = TPU_VM | KIND | BUCKET | {"POLL_SECONDS": "0"}
CREATE = [*TPUS, "queued-resources", "create", "pod", "--node-id=pod"]
CREATE += ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
DELETE = [*TPUS, "queued-resources", "delete", "pod", "--force", "--quiet", *WHERE]
LIST = [*TPUS, "queued-resources", "list", "--format=value(name.basename(),state.state)", *WHERE]
LAST_LINE = '{"job": "pretrain", "step": 100, "num_steps": 100}\n'


def listed(*states: str) -> list[str]:
    """Answers of the listing: the state of pod after another's; '' if there is no pod."""
    return [f"pod-2\tFAILED\n{state and f'pod{chr(9)}{state}{chr(10)}'}" for state in states]


def runs(*answers: str) -> list[str]:
    """Answers of two workers, a word each or one for both."""
    pairs = [(answer.split() * 2)[:2] for answer in answers]
    return ["".join(f"state: {word}\n" for word in pair) for pair in pairs]


def start(desk, states, run_states, *flags, **variables):
    desk.answers(
        {
            "queued-resources list": states,
            "detached.sh state": run_states,
            "detached.sh log": [f"some line\n{LAST_LINE}"],
        }
    )
    return desk.call("queued_resource.sh", *flags, **VARIABLES | variables)


def what(call: list[str]) -> str:
    """The verb of a call; '' if it only looks."""
    line = " ".join(call)
    for text, verb in (
        *(("queued-resources create", "create"), ("queued-resources delete", "delete")),
        *(("worker_setup.sh", "setup"), ("detached.sh start", "run"), ("detached.sh log", "log")),
    ):
        if text in line:
            return verb
    return ""


def verbs(desk) -> list[str]:
    return [verb for verb in map(what, desk.calls) if verb]


def test_it_waits_for_active_runs_and_deletes(desk):
    states = listed("", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    status, out, err = start(desk, states, runs("none", "running", "running", "done"), SPOT="1")
    assert status == 0, err
    assert verbs(desk) == ["create", "setup", "run", "log", "delete"]
    assert out.endswith(LAST_LINE)
    assert desk.calls[:2] == [LIST, [*CREATE, "--spot", *WHERE]]
    assert desk.calls[-1] == DELETE
    assert "pod is WAITING_FOR_RESOURCES" in err


def test_what_is_taken_away_is_requested_again_and_resumes_in_the_same_workdir(desk):
    states = listed("", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED")
    states += listed("", "WAITING_FOR_RESOURCES", "ACTIVE")
    run_states = runs("none", "running", "none", "running", "done")
    flag = "--config.data.dir=a b"
    status, out, err = start(desk, states, run_states, flag, CONFIG="configs/byol.py")
    assert status == 0, err
    once = ["create", "setup", "run"]
    assert verbs(desk) == [*once, "delete", *once, "log", "delete"]
    first, second = [call for call in desk.calls if what(call) == "run"]
    assert first == second and "--workdir=/gcs/lab-runs/one" in " ".join(first)
    assert r"--config.data.dir=a\ b" in " ".join(first)
    assert [call for call in desk.calls if what(call) == "create"] == 2 * [[*CREATE, *WHERE]]
    assert out.endswith(LAST_LINE) and "restart 1 of 20" in err


ACTIVE, LOST = listed("", "ACTIVE"), ("", 255)
# States of the resource, of the run on two workers, variables; status, what was done, what is said.
CASES = {
    "the limit of restarts": (
        *(listed("", "SUSPENDED", "", "FAILED", "", "PREEMPTED"), runs("none")),
        *({"MAX_RESTARTS": "2"}, 1, "create delete create delete create delete", "MAX_RESTARTS=2"),
    ),
    "lost, and started again in place": (
        *(ACTIVE, runs("none", "running", "lost", "running", "done"), {}),
        *(0, "create setup run setup run log delete", ""),
    ),
    "stopped on one worker": (
        *(ACTIVE, runs("none", "running", "stopped done", "running", "done"), {}),
        *(0, "create setup run setup run log delete", ""),
    ),
    "nothing is started while a worker still runs": (
        *(ACTIVE, runs("none", "crashed running", "crashed running", "crashed failed", "done"), {}),
        *(0, "create setup run setup run log delete", ""),
    ),
    "crashes count as restarts": (
        *(ACTIVE, runs("none", "crashed"), {"MAX_RESTARTS": "3"}),
        *(1, "create" + 4 * " setup run" + " log delete", "MAX_RESTARTS=3"),
    ),
    "an error to fix": (
        *(ACTIVE, runs("none", "running", "failed done"), {}),
        *(1, "create setup run log delete", "what to fix"),
    ),
    "KEEP leaves the resource": (
        *(ACTIVE, runs("none", "done"), {"KEEP": "1"}, 0, "create setup run log", ""),
    ),
    "an active run is continued with": (
        *(listed("ACTIVE"), runs("running", "done"), {}, 0, "log delete", ""),
    ),
    "a check that fails for a while": (
        [("", 1), ("", 1), *listed("ACTIVE")],
        [*runs("none", "running"), LOST, ("state: running\n", 255), *runs("done")],
        *({}, 0, "setup run log delete", ""),
    ),
    "workers that cannot be reached are given back": (
        *([*listed(*["ACTIVE"] * 10), *ACTIVE], [LOST] * 10 + runs("none", "done"), {}),
        *(0, "delete create setup run log delete", ""),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_runs_and_resources_are_started_again_or_given_back(desk, case):
    states, run_states, variables, expected, done, said = CASES[case]
    status, out, err = start(desk, states, run_states, **variables)
    assert status == expected, err
    assert verbs(desk) == done.split() and said in err
    assert ("some line" in out) == ("log" in done)


def test_a_resource_that_cannot_be_created_ends_it_with_gclouds_own_words(desk):
    desk.answers({"queued-resources create": [("no quota\n", 1)]})
    status, out, _ = desk.call("queued_resource.sh", **VARIABLES)
    assert (status, out) == (1, "no quota\n") and verbs(desk) == ["create"]


def test_requests_that_fail_after_the_first_are_repeated(desk):
    desk.answers(
        {
            "queued-resources list": listed("", "SUSPENDED", "SUSPENDED", "", "", "ACTIVE"),
            "queued-resources create": [("", 0), ("busy\n", 1), ("", 0)],
            "queued-resources delete": [("busy\n", 1), ("", 0)],
            "detached.sh state": runs("none", "done"),
        }
    )
    status, _, err = desk.call("queued_resource.sh", **VARIABLES)
    assert status == 0 and err.count("restart 1 of 20") == 1
    again = ["create", "delete", "delete", "create", "create"]
    assert verbs(desk) == [*again, "setup", "run", "log", "delete"]


def test_a_resource_that_can_neither_be_reached_nor_deleted_ends_it(desk):
    desk.answers(
        {
            "queued-resources list": listed("ACTIVE"),
            "queued-resources delete": [("", 1)],
            "detached.sh state": [LOST],
        }
    )
    status, _, err = desk.call("queued_resource.sh", **VARIABLES)
    assert status == 1 and verbs(desk) == 11 * ["delete"] and "delete it by hand" in err


def test_checks_that_keep_failing_end_it(desk):
    status, _, err = start(desk, [("", 1)], runs("none"))
    assert status == 1 and verbs(desk) == [] and len(desk.calls) == 10
    assert "could not be listed" in err


def test_a_setup_that_fails_is_repeated(desk):
    desk.answers(
        {
            "queued-resources list": listed("", "ACTIVE"),
            "worker_setup.sh": [("", 1), ("", 0)],
            "detached.sh state": runs("none", "none", "done"),
        }
    )
    assert desk.call("queued_resource.sh", **VARIABLES)[0] == 0
    assert verbs(desk) == ["create", "setup", "setup", "run", "log", "delete"]


def test_a_dry_run_says_every_command(desk):
    _, out, _ = desk.call("queued_resource.sh", "--dry-run", **VARIABLES)
    said = [what(shlex.split(line)) for line in out.splitlines() if line[0] != "#"]
    assert [verb for verb in said if verb] == ["create", "setup", "run", "delete", "log", "delete"]
    assert desk.calls == []
