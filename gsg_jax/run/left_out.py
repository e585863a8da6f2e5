"""The images that a run leaves out, each with the reason, in a file of its workdir."""

import threading
from pathlib import Path

from gsg_jax.run.files import open_to_append


class LeftOut:
    """Collects reasons; a run that is resumed adds to those of before."""

    def __init__(self, path: Path):
        """Reads what is there; the file is written only if there is a reason."""
        self._path, self._lock = path, threading.Lock()
        text = path.read_text("utf-8", "surrogateescape") if path.is_file() else ""
        self._lines = set(text.splitlines())

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, *reasons: str) -> None:
        """Appends the reasons that are not in the file, a line each."""
        with self._lock:
            lines = [" ".join(reason.splitlines()) for reason in reasons]
            if new := [line for line in lines if line not in self._lines]:
                with open_to_append(self._path) as file:
                    file.writelines(f"{line}\n" for line in new)
                self._lines.update(new)
