"""The k-NN monitor: one figure of quality while pretraining goes on."""

import ml_collections
import numpy as np

from gsg_jax.data.part import Part
from gsg_jax.data.sources import Source
from gsg_jax.evaluation.features import Embed, embed_source, pixels
from gsg_jax.evaluation.knn import knn_top1
from gsg_jax.progress import say


class KnnMonitor:
    """Scores an embedding function by k-NN: training images vote on the test images.

    Without a test set that has labels every training image is classified by the others. Of a
    larger training set than eval.max_bank, evenly spaced images make the bank.
    """

    def __init__(self, config: ml_collections.ConfigDict, train: Source, test: Source | None):
        """Keeps the two sources; `train` must have labels."""
        self._eval = config.eval
        self._size = config.views.size if config.data.crop == "host" else None
        self._bank = train
        if len(train) > config.eval.max_bank:
            chosen = np.linspace(0, len(train) - 1, config.eval.max_bank).round().astype(np.int64)
            self._bank = Part(train, chosen)
        self._query = test if test is not None and test.class_names else None
        self._voters = len(self._bank) - (self._query is None)  # no image votes for itself
        k = config.eval.knn_k
        if k > self._voters:
            say(f"warning: eval.knn_k is {k}, {self._voters} images can vote: all do")

    def top1(self, embed: Embed, k: int | None = None) -> float:
        """Top-1 accuracy in [0, 1] of embeddings made by `embed`, by k (eval.knn_k) neighbours."""
        return self.top1_by_k(embed, (k or self._eval.knn_k,))[0]

    def top1_by_k(self, embed: Embed, ks: tuple[int, ...]) -> list[float]:
        """Top-1 accuracy for each number of neighbours; where fewer images can vote, all do."""
        batch_size = self._eval.batch_size
        bank = embed_source(embed, self._bank, batch_size=batch_size, size=self._size)
        query, query_labels, leave_one_out = bank, self._bank.labels, True
        if self._query is not None:
            query = embed_source(embed, self._query, batch_size=batch_size, size=self._size)
            query_labels, leave_one_out = self._query.labels, False
        return [
            knn_top1(
                bank,
                self._bank.labels,
                query,
                query_labels,
                k=min(k, self._voters),
                temperature=self._eval.knn_temperature,
                leave_one_out=leave_one_out,
            )
            for k in ks
        ]

    def top1_of_pixels(self) -> float:
        """Top-1 accuracy of raw pixels: what any representation should beat."""
        return self.top1(pixels)
