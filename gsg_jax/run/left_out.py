"""The images that a run leaves out, each with the reason, in a file of its workdir."""

import threading
from pathlib import Path

from gsg_jax.run.files import open_to_append


class LeftOut:
    """Collects reasons; a resumed run adds to the earlier ones."""

    def __init__(self, path: Path):
        """Reads the earlier ones; the file is written only if there is a reason."""
        self._path, self._lock = path, threading.Lock()
        self._lines = self._in_file()

    def __len__(self) -> int:
        return len(self._lines | self._in_file())

    def _in_file(self) -> set[str]:
        """The lines of the file, to which other hosts add too."""
        if not self._path.is_file():
            return set()
        return set(self._path.read_text("utf-8", "surrogateescape").splitlines())

    def add(self, *reasons: str) -> None:
        """Appends the reasons that are not in the file, a line each."""
        with self._lock:
            lines = [" ".join(reason.splitlines()) for reason in reasons]
            if new := [line for line in lines if line not in self._lines]:
                with open_to_append(self._path) as file:
                    file.writelines(f"{line}\n" for line in new)
                self._lines.update(new)
