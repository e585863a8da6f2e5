"""PyTorch's input path on image files, a program driven by input.py.

A DataLoader of worker processes reads a data set of files: Pillow decodes each image once, and
torchvision's RandomResizedCrop cuts its views. The first line of standard input is a JSON object of
settings. Each further line asks for a chunk of batches; the answer is its seconds.
"""

import collections
import itertools
import json
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

try:
    from torchvision.transforms import InterpolationMode, RandomResizedCrop
except RuntimeError:
    # Compiled operators that were not built for this torch do not load. Crops need none, but the
    # import asks for these by name.
    for name in ("nms", "qnms"):
        schema = "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", schema)
    from torchvision.transforms import InterpolationMode, RandomResizedCrop


class Views(Dataset):
    """Views of image files, uint8 [V, S, S, 3]."""

    def __init__(self, paths, num_views, size, area, aspect):
        self.paths, self.num_views = paths, num_views
        # On PIL images this is Pillow's resizing, which smooths when it shrinks.
        self.crop = RandomResizedCrop(size, area, aspect, InterpolationMode.BILINEAR)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """Returns the views of one image."""
        with Image.open(self.paths[index]) as image:
            pixels = image.convert("RGB")
        views = [np.asarray(self.crop(pixels)) for _ in range(self.num_views)]
        return torch.from_numpy(np.stack(views))


def main() -> None:
    """Answers the lines of standard input."""
    settings = json.loads(sys.stdin.readline())
    names = ("paths", "num_views", "size", "area", "aspect")
    data = Views(*(settings[name] for name in names))
    skipped, timed = settings["skipped"], settings["timed"]
    # The workers persist from chunk to chunk and are idle in between.
    num_batches = skipped + timed + settings["ahead"]
    loader = DataLoader(
        data,
        batch_size=settings["batch_size"],
        sampler=RandomSampler(data, num_samples=num_batches * settings["batch_size"]),
        num_workers=settings["threads"],
        prefetch_factor=settings["ahead"] // settings["threads"],
        persistent_workers=True,
    )
    for _ in sys.stdin:
        print(time_chunk(iter(loader), skipped, timed), flush=True)


def time_chunk(batches, skipped: int, timed: int) -> float:
    """Returns the seconds of some batches, with as many under way before as after."""
    exhaust(itertools.islice(batches, skipped))
    start = time.perf_counter()
    exhaust(itertools.islice(batches, timed))
    seconds = time.perf_counter() - start
    exhaust(batches)
    return seconds


def exhaust(batches) -> None:
    """Takes all batches and keeps none."""
    collections.deque(batches, maxlen=0)


if __name__ == "__main__":
    main()
