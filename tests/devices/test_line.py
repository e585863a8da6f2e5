"""Hosts meet or say who is missing; one that is lost or fails is named to all others."""

import json
import socket
import threading
import time

import pytest

from gsg_jax.console import UserError
from gsg_jax.devices import line

OPENED = []


@pytest.fixture
def address():
    """Of a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def ends(monkeypatch):
    """What would have ended this process: (status, the thread's host)."""
    ended = []
    monkeypatch.setattr(line, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(line, "PING_SECONDS", 0.05)
    monkeypatch.setattr(line.os, "_exit", ended.append)
    yield ended
    while OPENED:  # none may end this process when its _exit is itself again
        found = OPENED.pop()
        found._is_closed = True
        wait_until(lambda thread=f"line {found.host}": not is_running(thread))


def is_running(name):
    return any(thread.name == name for thread in threading.enumerate())


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def come(address, hosts, num_hosts=3, timeout=10.0, about=None, said=None):
    """Lets hosts meet in threads: what each got, {host: Line or UserError}, in order of coming."""
    results, threads = {}, []

    def one(place, host):
        say = (said if said is not None else []).append
        try:
            versions = (about or {}).get(host, "1")
            results[place] = line.meet(
                address, num_hosts, host, timeout=timeout, about=versions, say=say
            )
            OPENED.append(results[place])
        except UserError as error:
            results[place] = error

    for place, host in enumerate(hosts):
        threads.append(threading.Thread(target=one, args=(place, host)))
        threads[-1].start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(20)
    return results


def end(results):
    for found in results.values():
        if isinstance(found, line.Line):
            found.end(0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_hosts_that_come_in_any_order_meet_and_leave_the_port_to_jax(address, order, ends):
    results = come(address, order)
    assert all(isinstance(found, line.Line) for found in results.values())
    assert sorted(found.host for found in results.values()) == [0, 1, 2]
    port = int(address.rpartition(":")[2])
    socket.create_server(("127.0.0.1", port)).close()
    end(results)


def test_what_one_host_notes_all_others_read(address, ends):
    results = come(address, (0, 1, 2))
    for found in results.values():
        found.leave_note(f"first of {found.host}")
        found.leave_note(f"step {found.host}")
    notes = {host: f"step {host}" for host in range(3)}
    wait_until(lambda: all(found.notes() == notes for found in results.values()))
    end(results)


@pytest.mark.parametrize(
    ("hosts", "num_hosts", "said"),
    [
        ((0, 1), 3, "host 2 is missing of 3"),
        ((0,), 4, "hosts 1, 2, 3 are missing of 4"),
        ((0,), 12, "hosts 1, 2, 3, 4, 5, 6, 7, 8 and 3 more are missing of 12"),
    ],
)
def test_a_missing_host_is_named_to_all_that_have_come(address, hosts, num_hosts, said):
    results = come(address, hosts, num_hosts, timeout=0.6)
    for found in results.values():
        assert str(found).startswith(said) and f"to {address} within 0.6 s" in str(found)
        assert "--host_timeout" in str(found) and "\n" not in str(found)


def test_a_missing_host_0_is_named_with_its_address(address):
    (found,) = come(address, (1,), timeout=0.5).values()
    assert str(found).startswith("host 0 is missing of 3") and address in str(found)
    assert "Connection refused" in str(found)


@pytest.mark.parametrize(
    ("hosts", "about", "said"),
    [
        ((0, 1, 1), {}, "two processes are host 1 of 3"),
        ((0, 1, 7), {}, "host 7 was told of 3 hosts"),
        ((0, 1, 2), {2: "jax 9"}, "host 2 has jax 9, host 0 1: install the same"),
    ],
)
def test_a_host_that_cannot_take_part_is_told_to_all(address, hosts, about, said):
    results = come(address, hosts, about=about)
    assert len(results) == 3
    assert all(said in str(found) for found in results.values())


def test_a_port_that_is_taken_is_told_with_the_flag(address):
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        (found,) = come(address, (0,), timeout=1).values()
    assert "cannot be had (Address already in use" in str(found) and "--port" in str(found)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b""])
def test_another_program_at_the_port_does_no_harm(address, sent, ends):
    def knock():
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as stranger:
            stranger.sendall(sent)

    threading.Thread(target=knock).start()
    thread_of_late_ones = threading.Timer(0.6, lambda: late.update(come(address, (1, 2))))
    late = {}
    thread_of_late_ones.start()
    results = come(address, (0,))
    thread_of_late_ones.join(10)
    assert isinstance(results[0], line.Line) and len(late) == 2
    end(results | {"late": late[0], "later": late[1]})


@pytest.mark.parametrize("lost", [0, 2])
def test_a_host_whose_connection_closes_is_named_by_all_others(address, ends, lost):
    said = []
    results = come(address, (0, 1, 2), said=said)
    results[lost]._is_closed = True  # closes its connections without a word, as a kill does
    wait_until(lambda: len(ends) >= 2)
    assert set(ends) == {line.AGAIN}
    named = [text for text in said if text.startswith(f"error: host {lost} (127.0.0.1) is lost")]
    assert len(named) == len(said) == 2 and all("same command" in text for text in said)
    end(results)


def test_a_host_that_falls_silent_is_lost(address, ends, monkeypatch):
    said = []
    monkeypatch.setattr(line, "LOST_SECONDS", 0.5)
    results = come(address, (0, 1), num_hosts=2, said=said)
    silent = results[1]
    monkeypatch.setattr(silent, "_ping", lambda: None)
    wait_until(lambda: said)
    assert said[0].startswith("error: host 1 (127.0.0.1) is lost, it has said nothing for")
    assert ends[0] == line.AGAIN
    end(results)


def test_a_host_that_fails_ends_the_others_with_its_words_and_status(address, ends):
    said = []
    results = come(address, (0, 1, 2), said=said)
    results[1].end(1, "no room on the disk")
    wait_until(lambda: len(ends) == 2)
    assert ends == [1, 1] and set(said) == {"error: host 1 ended: no room on the disk"}
    end(results)


def test_hosts_that_are_done_end_nobody(address, ends):
    said = []
    results = come(address, (0, 1, 2), said=said)
    results[1].end(0)
    for connection in results[1]._peers.values():
        connection.close()
    time.sleep(0.3)
    results[0].end(0)
    for connection in results[0]._peers.values():
        connection.close()
    time.sleep(0.3)
    assert not said and not ends
    end(results)


def test_a_host_that_has_ended_itself_is_not_ended_by_another(address, ends):
    said = []
    results = come(address, (0, 1), num_hosts=2, said=said)
    results[0].end(1, "the loss is nan")
    results[1].end(1, "the loss is nan")
    time.sleep(0.3)
    assert not said and not ends


def test_messages_are_lines_of_json(address, ends):
    results = come(address, (0, 1), num_hosts=2)
    results[1].leave_note('quotes " and\nlines')
    wait_until(lambda: 1 in results[0].notes())
    assert results[0].notes()[1] == json.loads(json.dumps('quotes " and\nlines'))
    end(results)
