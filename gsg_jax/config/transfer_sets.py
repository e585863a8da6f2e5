"""The sets of the transfer suite: TFDS names, splits and metrics."""

from typing import NamedTuple


class TransferSet(NamedTuple):
    """One set of the suite.

    Attributes:
      tfds: its TFDS name.
      metric: "top1", "mean_per_class", or "map_11_point" for images with several labels.
      train: the split to learn from.
      validation: the split to choose by; "" holds out a part of the training split.
      test: the split to score.
    """

    tfds: str
    metric: str
    train: str = "train"
    validation: str = ""
    test: str = "test"

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has several labels."""
        return self.metric == "map_11_point"


# Splits and metrics: Grill et al., NeurIPS 2020 (arXiv 2006.07733), appendix D.
SETS = {
    "food101": TransferSet("food101", "top1", test="validation"),
    "cifar10": TransferSet("cifar10", "top1"),
    "cifar100": TransferSet("cifar100", "top1"),
    "sun397": TransferSet("sun397/standard-part1-120k", "top1"),
    "cars": TransferSet("cars196", "top1"),
    # Not in TFDS's catalogue: the user prepares a set of this name.
    "aircraft": TransferSet("fgvc_aircraft", "mean_per_class", validation="validation"),
    "voc2007": TransferSet("voc/2007", "map_11_point", validation="validation"),
    "dtd": TransferSet("dtd", "top1", validation="validation"),
    "pets": TransferSet("oxford_iiit_pet", "mean_per_class"),
    "caltech101": TransferSet("caltech101", "mean_per_class"),
    "flowers": TransferSet("oxford_flowers102", "mean_per_class", validation="validation"),
}
