"""Sources of images that worker processes of the tests unpickle; light to import."""

import multiprocessing
import os
import signal
import sys
import time

import numpy as np


class Numbered:
    """Eight images, image i filled with i."""

    name, labels, class_names, image_shape = "numbered", None, (), None

    def __len__(self):
        return 8

    def image(self, i):
        return np.full((9, 9, 3), i, np.uint8)


class Deadly(Numbered):
    """Kills whoever reads image 5."""

    def image(self, i):
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(i)


class Faulty(Numbered):
    """Raises an error that does not pickle."""

    def image(self, i):
        raise OddError(1, 2)


class OddError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class Slow(Numbered):
    """Takes 10 ms for an image, or, once a process has read 55 of them, a minute if told so."""

    num_read = 0

    def __init__(self, gets_stuck):
        self.gets_stuck = gets_stuck

    def __len__(self):
        return 500

    def image(self, i):
        assert not multiprocessing.parent_process() or "jax" not in sys.modules, "imported jax"
        self.num_read += 1
        time.sleep(60 if self.gets_stuck and self.num_read > 55 else 0.01)
        return super().image(i % 256)
