"""What reads images, handed to worker processes once: laid into a file that has no name."""

import mmap
import pickle
import tempfile
from multiprocessing import reduction
from typing import Any

from gsg_jax.console import UserError


class Handover:
    """Hands one object to several processes while they are started.

    The object lies in a file without a name, of which nothing stays however the program ends. The
    processes map it, so that they share the arrays of a source instead of holding a copy each, and
    none waits for another's.
    """

    def __init__(self, handed: Any) -> None:
        """Lays an object down.

        Args:
          handed: must pickle.

        Raises:
          UserError: where it does not, or there is no room for it.
        """
        buffers: list[pickle.PickleBuffer] = []
        mend = "set --config.data.num_processes=0 to decode in threads"
        try:
            rest = pickle.dumps(handed, protocol=5, buffer_callback=buffers.append)
        except Exception as error:  # whatever the parts of a source raise
            raise UserError(
                f"the images cannot be handed to worker processes ({error}): {mend}"
            ) from error
        parts = [memoryview(rest), *(buffer.raw() for buffer in buffers)]
        self._sizes = [part.nbytes for part in parts]
        try:
            self._file = tempfile.TemporaryFile()
            for part in parts:
                self._file.write(part)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{sum(self._sizes):,} bytes for the worker processes find no room in "
                f"{tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a folder that has it, "
                f"or {mend}"
            ) from error

    def close(self) -> None:
        """Lets go of the file: no further process can be started."""
        self._file.close()

    def __reduce__(self) -> tuple:
        # Pickled only while a process is started, which then inherits the file.
        return Handed, (reduction.DupFd(self._file.fileno()), self._sizes)


class Handed:
    """What a process finds in place of a Handover."""

    def __init__(self, file: Any, sizes: list[int]) -> None:
        self._file, self._sizes = file, sizes

    def take(self) -> Any:
        """Returns the object; its arrays can be read only."""
        laid = memoryview(mmap.mmap(self._file.detach(), 0, access=mmap.ACCESS_READ))
        parts, start = [], 0
        for size in self._sizes:
            parts.append(laid[start : start + size])
            start += size
        return pickle.loads(parts[0], buffers=parts[1:])
