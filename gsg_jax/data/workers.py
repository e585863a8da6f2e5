"""Who reads a batch's images: threads of this process, or processes beside it.

A worker process has a pipe and a thread here of its own. concurrent.futures' pool of processes has
one pipe for all answers, and waits for ever where a worker is killed in the middle of one.
"""

import atexit
import collections
import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from gsg_jax.console import UserError, say
from gsg_jax.data.handover import Handed, Handover
from gsg_jax.data.source import Busy

# (step, place, i) of Reader, which reads {name: pixels} of one image.
Call = tuple[int, int, int]
Read = Callable[[int, int, int], dict[str, np.ndarray]]
# What people call image i.
Name = Callable[[int], str]

# Images that a process reads before it answers, at most: an answer is some megabytes.
_IMAGES_AN_ANSWER = 8
_LOOK_FOR_PARENT_SECONDS = 0.5
_END_SECONDS = 5.0
# Of the processes that die at the same images.
_MAX_DEATHS = 3


class Workers(Protocol):
    """Readers of images that work at the same time; several threads may ask them."""

    def read(self, calls: Sequence[Call]) -> Iterator[dict[str, np.ndarray]]:
        """Yields what each call reads, in their order; raises what reading raises."""
        ...

    def busy(self) -> list[Busy]:
        """Says what is being read, and for how long."""
        ...

    def close(self) -> None:
        """Ends the work at once; what is not yet read stays unread."""
        ...


class Threads:
    """Reads in threads of this process; satisfies Workers."""

    def __init__(self, read: Read, num_threads: int, name: Name = "image {}".format) -> None:
        self._read, self._num_threads, self._name = read, num_threads, name
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._at: dict[str, tuple[int, float]] = {}  # by thread: its image, and since when

    def read(self, calls: Sequence[Call]) -> Iterator[dict[str, np.ndarray]]:
        """Yields what each call reads, in their order."""
        return _in_order(
            lambda call: self._pool.submit(self._read_noted, *call), calls, 4 * self._num_threads
        )

    def busy(self) -> list[Busy]:
        """Says what is being read, and for how long."""
        now = time.monotonic()
        return [
            Busy(f"thread {who}", self._name(i), now - since)
            for who, (i, since) in sorted(self._at.copy().items())
        ]

    def close(self) -> None:
        """Drops what is queued; does not wait for what is being read."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read_noted(self, step: int, place: int, i: int) -> dict[str, np.ndarray]:
        who = threading.current_thread().name
        self._at[who] = (i, time.monotonic())
        try:
            return self._read(step, place, i)
        finally:
            del self._at[who]


class Processes:
    """Reads in processes beside this one; satisfies Workers.

    A process that dies is told in one line, and another one reads in its place what it was asked
    for: reading is a function of the call, so that the batches stay the same. A process ends when
    this is closed, when this program ends and, within a second, when this program is killed. It
    leaves Ctrl-C and SIGTERM to this program, and no JAX backend is begun in it. A script that
    trains needs its `if __name__ == "__main__":`.
    """

    def __init__(self, read: Read, num_processes: int, name: Name = "image {}".format) -> None:
        """Starts the processes, which import and take what reads while this program goes on.

        Args:
          read: reads one image; it and its source must pickle.
          num_processes: how many, 1 or more.
          name: what people call an image.

        Raises:
          UserError: where the source does not pickle, or finds no room.
        """
        self._handover = Handover(read)  # until the end: a process may be started at any time
        self._num_processes, self._name = num_processes, name
        self._is_closed, self._closing = False, threading.Lock()
        self._failure = ""  # what none of the processes will mend
        # A thread a process: it waits for the answer, and unpacks it.
        self._pool = ThreadPoolExecutor(num_processes, thread_name_prefix="decode")
        self._workers: list[_Worker] = []
        self._idle = queue.SimpleQueue()
        # Called before multiprocessing's own exit, which would wait for the processes.
        atexit.register(self.close)
        for _ in range(num_processes):
            self._workers.append(_Worker(self._handover))
            self._idle.put(self._workers[-1])

    def read(self, calls: Sequence[Call]) -> Iterator[dict[str, np.ndarray]]:
        """Yields what each call reads; UserError where processes die at the same images."""
        share = -(-len(calls) // (2 * self._num_processes))
        size = max(1, min(share, _IMAGES_AN_ANSWER))
        parts = [calls[start : start + size] for start in range(0, len(calls), size)]
        for answers in _in_order(
            lambda part: self._pool.submit(self._ask, part), parts, 2 * self._num_processes
        ):
            yield from answers

    def busy(self) -> list[Busy]:
        """Says what is being read, and for how long."""
        found = [worker.busy() for worker in self._workers]
        return [Busy(who, self._image(i), seconds) for who, i, seconds in filter(None, found)]

    def close(self) -> None:
        """Kills the processes, which hold nothing but what they read."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        atexit.unregister(self.close)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        self._handover.close()

    def _ask(self, calls: Sequence[Call]) -> list[dict[str, np.ndarray]]:
        worker, num_deaths = self._idle.get(), 0
        try:
            while not self._failure:
                try:
                    return worker.ask(calls)
                except _Died as death:
                    num_deaths += 1
                    self._replace(worker, death, num_deaths)
            raise UserError(self._failure)
        finally:
            self._idle.put(worker)

    def _image(self, i: int | None) -> str:
        return "no image" if i is None else self._name(i)

    def _replace(self, worker: "_Worker", death: "_Died", num_deaths: int) -> None:
        """Starts another process for one that has died, or notes that this does not help."""
        told = f"{death} at {self._image(death.i)}"
        with self._closing:
            if self._is_closed or self._failure:
                self._failure = self._failure or told
                return
            if num_deaths < _MAX_DEATHS:
                say(f"warning: {told}; another one takes its place")
                worker.start(self._handover)
                return
        self._failure = (
            f"{told}, as {num_deaths - 1} before it there: repair or remove that image; or, where "
            "memory runs out, lower --config.data.num_processes "
            f"(now {self._num_processes}), or set --config.data.num_processes=0 to decode in "
            "threads, and the run goes on; an evaluation reads it from the config.json of its run"
        )


class _Died(Exception):
    """A worker process is no more; says how it ended, and has the image it was at, `i`, or None."""

    def __init__(self, text: str, i: int | None) -> None:
        super().__init__(text)
        self.i = i


# Whoever starts or joins a process looks after all that have ended: of two at once, one would not
# see how its own did.
_one_at_a_time = threading.Lock()


class _Worker:
    """One process, asked by one thread at a time."""

    def __init__(self, handover: Handover) -> None:
        self._calls: Sequence[Call] = ()  # what it is being asked
        self.start(handover)

    def start(self, handover: Handover) -> None:
        """Starts the process, or another one for one that has died."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # Which of the calls it is at, -1 where at none, and since when (time.monotonic).
        progress = context.RawArray("d", (-1.0, time.monotonic()))
        arguments = (theirs, handover, progress)
        process = context.Process(target=_serve, args=arguments, name="decode")
        with _one_at_a_time, _signals_kept_here():
            process.start()
        theirs.close()
        self._connection, self._progress, self._process = ours, progress, process

    def ask(self, calls: Sequence[Call]) -> list[dict[str, np.ndarray]]:
        """Returns what the calls read; raises what they raise, _Died where nobody answers."""
        self._progress[:] = (-1.0, time.monotonic())
        self._calls = calls
        try:
            self._connection.send(calls)
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._connection.close()
            raise _Died(self._how_it_ended(), self._image(calls)) from None
        finally:
            self._calls = ()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def busy(self) -> tuple[str, int | None, float] | None:
        """Who it is, which image it is at, and for how many seconds; None where it is idle."""
        if not (calls := self._calls):
            return None
        seconds = time.monotonic() - self._progress[1]
        return f"worker process {self._process.pid}", self._image(calls), seconds

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> None:
        with _one_at_a_time:
            self._process.join(_END_SECONDS)

    def _image(self, calls: Sequence[Call]) -> int | None:
        position = int(self._progress[0])
        return None if position < 0 else calls[position][2]

    def _how_it_ended(self) -> str:
        self.join()
        status = self._process.exitcode
        who = f"worker process {self._process.pid}"
        if status == -signal.SIGKILL:
            return f"{who} was killed, as the system does when memory runs out"
        if status is not None and status < 0:
            return f"{who} was ended by {signal.Signals(-status).name}"
        return f"{who} ended with status {status}, for what it wrote above"


def _in_order(
    submit: Callable[[Any], Future], calls: Sequence[Any], num_ahead: int
) -> Iterator[Any]:
    """Yields the results of calls in their order, some of them submitted ahead."""
    # Not all at once: a program that ends waits for what is queued, and cannot queue more.
    waiting = collections.deque()
    for call in calls:
        if len(waiting) == num_ahead:
            yield waiting.popleft().result()
        waiting.append(submit(call))
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def _signals_kept_here() -> Iterator[None]:
    """Keeps Ctrl-C and SIGTERM from a process that is started meanwhile, from its first moment.

    Both reach all processes of a terminal or a job; what is to be saved, this one saves.
    """
    resource_tracker.ensure_running()  # its own start lets them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the worker process.


def _serve(connection: Connection, handed: Handed, progress: Any) -> None:
    """Answers until nobody asks any more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    read = None
    with contextlib.suppress(EOFError, OSError):  # the other end is gone
        while True:
            calls = connection.recv()
            try:
                read = read or handed.take()
                answer = []
                for call in calls:
                    progress[:] = (len(answer), time.monotonic())
                    answer.append(read(*call))
            except Exception as error:
                answer = _portable(error)
            connection.send(answer)
    os._exit(0)  # at once: an interpreter that has imported much takes a second to end


def _end_with_parent() -> None:
    """Ends this process soon after its parent, whatever it is doing."""
    parent = multiprocessing.parent_process().pid
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT_SECONDS)
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """An error that the other process can raise: itself where it pickles, else what it says."""
    if not isinstance(error, UserError):
        error.add_note(f"In a worker process:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its parts raise
        return RuntimeError(f"{type(error).__name__} in a worker process: {error}")
    return error
