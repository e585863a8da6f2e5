"""What worker processes of the tests import, which is light for that: sources of images."""

import os
import signal
import time

import numpy as np


class Records(list):
    def __getitems__(self, positions):
        return [self[i] for i in positions]


class Deadly:
    """Images of which reading one kills who reads it, the first `lives` times."""

    name, labels, class_names, image_shape = "deadly", None, (), None

    def __init__(self, folder, lives):
        self.folder, self.lives = folder, lives
        self.paths = tuple(folder / f"{i}.png" for i in range(8))

    def __len__(self):
        return 8

    def image(self, i):
        if i == 5:
            deaths = len(list(self.folder.iterdir()))
            if deaths < self.lives:
                (self.folder / str(deaths)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return np.full((9, 9, 3), i, np.uint8)


class Sleepy(Deadly):
    """Images of which reading one takes for ever."""

    def image(self, i):
        time.sleep(1000 if i == 5 else 0)
        return np.zeros((9, 9, 3), np.uint8)
