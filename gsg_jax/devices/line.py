"""The line between the hosts of a run: who is there, what each does, and which one is lost.

JAX's own runtime aborts the process, with a stack trace and no name, where a host is missing or
dies. So the hosts meet before it, on the coordinator's port, and keep these connections: host 0
has one to every other host and passes on what it hears.
"""

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import NoReturn

from gsg_jax.console import AGAIN, UserError

PING_SECONDS = 2.0
LOST_SECONDS = 60.0  # of silence; below the 100 s of JAX's own heartbeat
GRACE_SECONDS = 3.0  # a host that ends with the same error as another says it itself
_LONGEST = 2**16  # bytes of a message

Say = Callable[[str], None]


class Line:
    """One host's end of the line; `meet` opens it.

    Attributes:
      host: of this process.
      names: {host: address} of the hosts that this one is connected to.
    """

    def __init__(self, host: int, peers: dict[int, socket.socket], say: Say):
        """Begins to listen.

        Args:
          host: of this process, 0 and up.
          peers: {host: connection}: host 0 has every other, the others have host 0.
          say: prints a line for people.
        """
        self.host = host
        self.names = {
            peer: connection.getpeername()[0].removeprefix("::ffff:")
            for peer, connection in peers.items()
        }
        self._peers, self._say = peers, say
        self._notes, self._heard = {}, dict.fromkeys(peers, time.monotonic())
        self._buffers = dict.fromkeys(peers, b"")
        self._ended = set()
        self._lock = threading.Lock()
        self._is_closed = False
        threading.Thread(target=self._listen, name=f"line {host}", daemon=True).start()

    def leave_note(self, text: str) -> None:
        """Tells the others, within PING_SECONDS, what this host does."""
        self._notes[self.host] = text

    def notes(self) -> dict[int, str]:
        """What every host has told last, {host: text}; without those that told nothing."""
        return dict(self._notes)

    def end(self, status: int, text: str = "") -> None:
        """Says good-bye.

        Args:
          status: exit status of this process; the others end too where it is not 0.
          text: what it has said last, where it failed.
        """
        self._is_closed = True
        with self._lock:
            for peer in self._peers:
                self._send(peer, {"host": self.host, "end": status, "text": text})

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as connections:
            for peer, connection in self._peers.items():
                connections.enter_context(connection)
                connection.settimeout(PING_SECONDS)
                selector.register(connection, selectors.EVENT_READ, peer)
            pinged = 0.0
            while not self._is_closed:
                for key, _ in selector.select(timeout=PING_SECONDS / 2):
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                if time.monotonic() - pinged > PING_SECONDS:
                    pinged = time.monotonic()
                    self._ping()
                self._look_for_silence()

    def _ping(self) -> None:
        told = self._notes if self.host == 0 else {self.host: self._notes.get(self.host, "")}
        with self._lock:
            for peer in self._peers:
                if peer not in self._ended and not self._is_closed:
                    self._send(peer, {"notes": told})

    def _send(self, peer: int, message: dict) -> None:
        with contextlib.suppress(OSError):  # it is gone: reading tells, with what it said last
            self._peers[peer].sendall(json.dumps(message).encode() + b"\n")

    def _read(self, peer: int) -> bool:
        """Takes what a peer has sent; returns False where it will send no more."""
        try:
            data = self._peers[peer].recv(_LONGEST)
        except OSError:
            data = b""
        if not data:
            if peer not in self._ended:
                self._lose(peer, "its connection has closed")
            return False
        self._heard[peer] = time.monotonic()
        *lines, self._buffers[peer] = (self._buffers[peer] + data).split(b"\n")
        for line in lines:
            self._take(peer, json.loads(line))
        return True

    def _take(self, peer: int, message: dict) -> None:
        if "notes" in message:
            told = {int(host): text for host, text in message["notes"].items() if text}
            told.pop(self.host, None)
            self._notes |= told
        elif "end" in message:
            self._ended.add(message["host"])
            if message["end"]:
                self._pass_on(peer, message)
                self._follow(message["end"], f"host {message['host']} ended: {message['text']}")
        elif "lost" in message:
            self._follow(AGAIN, message["lost"])

    def _look_for_silence(self) -> None:
        for peer, heard in self._heard.items():
            silent = time.monotonic() - heard
            if silent > LOST_SECONDS and peer not in self._ended:
                self._lose(peer, f"it has said nothing for {silent:.0f} s")

    def _lose(self, peer: int, how: str) -> None:
        self._ended.add(peer)
        if self._is_closed:
            return
        text = (
            f"host {peer} ({self.names[peer]}) is lost, {how}: give every host the same command "
            "again, and the run goes on from the newest checkpoint"
        )
        self._pass_on(peer, {"lost": text})
        self._follow(AGAIN, text)

    def _pass_on(self, source: int, message: dict) -> None:
        if self.host == 0:
            with self._lock:
                for peer in self._peers:
                    if peer != source:
                        self._send(peer, message)

    def _follow(self, status: int, text: str) -> None:
        """Ends this process, which may be waiting for the lost host in a sum that never ends."""
        time.sleep(GRACE_SECONDS)
        if self._is_closed:
            return
        self._say(f"error: {text}")
        os._exit(status)


def meet(address: str, num_hosts: int, host: int, *, timeout: float, about: str, say: Say) -> Line:
    """Waits until every host is there.

    Args:
      address: HOST:PORT of host 0, which listens at that port on all its addresses until all have
        come, and leaves it to JAX then.
      num_hosts: of the run, 2 or more.
      host: this one, in [0, num_hosts).
      timeout: seconds to wait for the others.
      about: versions that must be the same on all hosts.
      say: prints a line for people.

    Returns:
      The line, open.

    Raises:
      UserError: where a host is missing (named), comes twice, has other versions, or the port is
        taken.
    """
    deadline = time.monotonic() + timeout
    if host:
        return Line(host, {0: _call(address, num_hosts, host, about, deadline, timeout)}, say)
    return Line(0, _receive(address, num_hosts, about, deadline, timeout), say)


def _receive(
    address: str, num_hosts: int, about: str, deadline: float, timeout: float
) -> dict[int, socket.socket]:
    """Host 0: the connections of all others."""
    there: dict[int, socket.socket] = {}
    with _listener(address) as listener:
        while len(there) < num_hosts - 1:
            left = deadline - time.monotonic()
            listener.settimeout(max(left, 0.001))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = sorted(set(range(1, num_hosts)) - there.keys())
                _refuse(there.values(), _missing(missing, num_hosts, address, timeout))
            hello = _hello(connection)
            if hello is None:  # of another program
                connection.close()
                continue
            if wrong := _wrong(hello, num_hosts, about, there):
                _refuse([*there.values(), connection], wrong)
            there[hello["host"]] = connection
    for connection in there.values():
        connection.sendall(b'{"go": true}\n')
    return there


def _listener(address: str) -> socket.socket:
    port = int(address.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"port {port} of this host, which the other hosts are to come to, cannot be had "
            f"({error.strerror}): give all hosts another --port"
        ) from error


def _hello(connection: socket.socket) -> dict | None:
    """What a host says when it comes, or None where another program does."""
    connection.settimeout(5)
    try:
        hello = json.loads(_line(connection))
        return hello if {"host", "num_hosts", "about"} <= hello.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _line(connection: socket.socket) -> bytes:
    """Reads up to the end of a line, byte by byte: what follows is for another."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST:
        byte = connection.recv(1)
        if not byte:
            raise ConnectionResetError
        line += byte
    return line


def _wrong(hello: dict, num_hosts: int, about: str, there: Collection[int]) -> str:
    """Why a host that has come cannot take part, or ""."""
    host = hello["host"]
    if hello["num_hosts"] != num_hosts or not 0 <= host < num_hosts:
        return (
            f"host {host} was told of {hello['num_hosts']} hosts, host 0 of {num_hosts}: give all "
            "the same --num_hosts"
        )
    if host == 0 or host in there:
        return f"two processes are host {host} of {num_hosts}: give each another --host_index"
    if hello["about"] != about:
        return f"host {host} has {hello['about']}, host 0 {about}: install the same on all hosts"
    return ""


def _refuse(there: Iterable[socket.socket], text: str) -> NoReturn:
    """Tells all that have come why the run cannot begin, and raises it here."""
    for connection in there:
        with contextlib.suppress(OSError), connection:  # one that has gone needs no reason
            connection.sendall(json.dumps({"error": text}).encode() + b"\n")
    raise UserError(text)


def _missing(missing: list[int], num_hosts: int, address: str, timeout: float) -> str:
    who = f"host {missing[0]} is" if len(missing) == 1 else f"hosts {_listed(missing)} are"
    return (
        f"{who} missing of {num_hosts}: nobody came as such to {address} within {timeout:g} s; "
        "look there for the reason, and begin all again, with a longer --host_timeout where they "
        "begin late"
    )


def _listed(hosts: list[int]) -> str:
    told = ", ".join(str(host) for host in hosts[:8])
    return told if len(hosts) <= 8 else f"{told} and {len(hosts) - 8} more"


def _call(
    address: str, num_hosts: int, host: int, about: str, deadline: float, timeout: float
) -> socket.socket:
    """Another host: its connection to host 0."""
    name, _, port = address.rpartition(":")
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((name.strip("[]"), int(port)), min(left, 5))
            answer = _ask(connection, {"host": host, "num_hosts": num_hosts, "about": about})
        except OSError as error:
            reason = error.strerror or type(error).__name__
            time.sleep(min(0.2, max(left, 0)))
            continue
        if "error" in answer:
            connection.close()
            raise UserError(answer["error"])
        return connection
    raise UserError(
        f"host 0 is missing of {num_hosts}: it does not answer at {address} within {timeout:g} s "
        f"({reason}); begin it there, or give all hosts its address as --coordinator=HOST:PORT"
    )


def _ask(connection: socket.socket, hello: dict) -> dict:
    """What host 0 answers once all have come; closes the connection where it does not."""
    try:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        connection.settimeout(None)  # from now on host 0 counts the time
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return json.loads(_line(connection))
    except OSError:
        connection.close()
        raise
