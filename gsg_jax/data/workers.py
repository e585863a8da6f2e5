"""Reads a batch's images in threads of this process, or in worker processes beside it.

Each worker process has a pipe and a thread of its own here. concurrent.futures.ProcessPoolExecutor
has one pipe for all answers: of 20 workers that were killed while they sent images, 8 left the
program waiting for ever. Grain's mp_prefetch imports JAX in each worker.
"""

import atexit
import collections
import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from gsg_jax.console import UserError
from gsg_jax.data.source import BrokenImage

# (step, place, i) of Reader, which returns {name: pixels} of one image, or what is wrong with it.
Call = tuple[int, int, int]
Read = Callable[[int, int, int], dict[str, np.ndarray] | BrokenImage]

# Most images per answer of a process: an answer is some megabytes.
_IMAGES_PER_ANSWER = 8
_EXIT_SECONDS = 5.0
_OF_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the parent saves on them
_IN_THREADS = "set --config.data.num_processes=0 to decode in threads"


class Threads:
    """Reads images in threads of this process."""

    def __init__(self, read: Read, num_threads: int) -> None:
        self._read, self._num_threads = read, num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def read(self, calls: Sequence[Call]) -> Iterator[dict[str, np.ndarray] | BrokenImage]:
        """Yields what each call reads, in their order; raises what reading raises."""
        return _in_order(
            lambda call: self._pool.submit(self._read, *call), calls, 4 * self._num_threads
        )

    def close(self) -> None:
        """Drops what is queued; does not wait for the images that are being read."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Processes:
    """Reads images in processes beside this one, with the same results as Threads.

    The processes end when this is closed, when this program ends and, within a second, when it is
    killed. Ctrl-C, SIGTERM and SIGHUP do not reach them, and they load no JAX. A script that trains
    needs its `if __name__ == "__main__":` only if it defines a part of the source itself.
    """

    def __init__(self, read: Read, num_processes: int) -> None:
        """Starts the processes; they import and unpickle while this program continues.

        Args:
          read: reads one image; it and its source must pickle.
          num_processes: how many, 1 or more.

        Raises:
          UserError: if the source does not pickle.
        """
        try:
            pickled = pickle.dumps(read)
        except Exception as error:  # the parts of a source may raise anything
            raise UserError(
                f"the images cannot be handed to worker processes ({error}): {_IN_THREADS}"
            ) from error
        self._num_processes, self._is_closed = num_processes, False
        self._pool = ThreadPoolExecutor(num_processes, thread_name_prefix="decode")
        self._idle: queue.SimpleQueue[tuple[BaseProcess, Connection]] = queue.SimpleQueue()
        workers = _start(pickled, num_processes)
        self._processes = [process for process, _ in workers]
        for worker in workers:
            self._idle.put(worker)
        # Runs before multiprocessing's own exit handler, which would wait for the processes.
        atexit.register(self.close)

    def read(self, calls: Sequence[Call]) -> Iterator[dict[str, np.ndarray] | BrokenImage]:
        """Yields what each call reads, in their order.

        Raises:
          UserError: if a process has died, in one line.
          RuntimeError: if reading fails otherwise; holds the process's traceback.
        """
        share = -(-len(calls) // (2 * self._num_processes))
        size = max(1, min(share, _IMAGES_PER_ANSWER))
        parts = [calls[start : start + size] for start in range(0, len(calls), size)]
        for answers in _in_order(
            lambda part: self._pool.submit(self._ask, part), parts, 2 * self._num_processes
        ):
            yield from answers

    def close(self) -> None:
        """Kills the processes, which hold nothing but what they read."""
        if self._is_closed:  # at exit, before the stream that used it
            return
        self._is_closed = True
        atexit.unregister(self.close)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_EXIT_SECONDS)

    def _ask(self, calls: Sequence[Call]) -> list[dict[str, np.ndarray] | BrokenImage]:
        process, pipe = worker = self._idle.get()
        try:
            pipe.send(calls)
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            if self._is_closed:  # close() waits for it: of two that wait, one misses the end
                raise
            process.join(_EXIT_SECONDS)
            status = process.exitcode or 0
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else "ended"
            raise UserError(
                f"worker process {process.pid} {how}: if memory ran out, lower "
                f"--config.data.num_processes (now {self._num_processes}), or {_IN_THREADS}; then "
                "start again"
            ) from error
        finally:
            self._idle.put(worker)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _in_order(
    submit: Callable[[Any], Future], calls: Sequence[Any], num_ahead: int
) -> Iterator[Any]:
    """Yields the results of calls in their order, some of them submitted ahead."""
    # Not all at once: a program that exits waits for what is queued.
    waiting = collections.deque()
    for call in calls:
        if len(waiting) == num_ahead:
            yield waiting.popleft().result()
        waiting.append(submit(call))
    while waiting:
        yield waiting.popleft().result()


def _start(pickled: bytes, num_processes: int) -> list[tuple[BaseProcess, Connection]]:
    """Starts worker processes that no stop signal reaches: this process saves on it."""
    context = multiprocessing.get_context("spawn")
    is_needed = b"__main__" in pickled
    resource_tracker.ensure_running()  # its own start unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_PARENT)
    try:
        workers = []
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, pickled), name="decode")
            with contextlib.nullcontext() if is_needed else _program_hidden():
                process.start()
            theirs.close()  # so that reading from `ours` fails if the process dies
            workers.append((process, ours))
        return workers
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _program_hidden() -> Iterator[None]:
    """Hides which program this is: a worker would run it again, with all that it imports."""
    program = vars(sys.modules["__main__"])
    names = {name: program[name] for name in ("__spec__", "__file__") if name in program}
    program["__spec__"] = None
    program.pop("__file__", None)  # None would make `inspect` fail
    try:
        yield
    finally:
        program.update(names)


# In the worker process.


def _serve(pipe: Connection, pickled: bytes) -> None:
    """Answers calls until nobody asks any more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    read = pickle.loads(pickled)
    while True:
        try:
            calls = pipe.recv()
        except (EOFError, OSError):  # the other end is gone
            os._exit(0)  # at once: an interpreter with many imports takes a second to end
        try:
            answer = [read(*call) for call in calls]
        except UserError as error:
            answer = error
        except Exception as error:
            answer = RuntimeError("".join(traceback.format_exception(error)))
        pipe.send(answer)


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, whatever it is doing."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
