"""The monitor: figures of quality during pretraining."""

import ml_collections
import numpy as np

from gsg_jax.console import say
from gsg_jax.data.open import Source
from gsg_jax.data.source import Subset
from gsg_jax.evaluation.features import Embed, embed_source
from gsg_jax.evaluation.knn import knn_top1
from gsg_jax.evaluation.logistic import linear_scores
from gsg_jax.evaluation.scores import top_k_accuracy


class KnnMonitor:
    """Scores an embedding function by k-NN: training images vote on the test images.

    Without a labelled test set, every training image is classified by the others. If the training
    set is larger than eval.max_bank, the bank has evenly spaced images of it.
    """

    def __init__(self, config: ml_collections.ConfigDict, train: Source, test: Source | None):
        """Keeps the two sources; `train` must have labels."""
        self._eval = config.eval
        size = config.views.size if config.data.crop == "host" else None
        self._how = {"batch_size": config.eval.batch_size, "size": size}
        self._bank = train
        if len(train) > config.eval.max_bank:
            chosen = np.linspace(0, len(train) - 1, config.eval.max_bank).round().astype(np.int64)
            self._bank = Subset(train, chosen)
        self._query = test if test is not None and test.class_names else None
        self._voters = len(self._bank) - (self._query is None)  # no image votes for itself
        k = config.eval.knn_k
        if k > self._voters:
            say(f"warning: eval.knn_k is {k}, {self._voters} images can vote: all do")

    def top1(self, embed: Embed) -> float:
        """Top-1 accuracy in [0, 1] of embeddings by k-NN; if fewer than k can vote, all do."""
        return self.figures(embed)["knn_top1"]

    def figures(self, embed: Embed, probe: dict | None = None) -> dict[str, float]:
        """Top-1 accuracies in [0, 1].

        Args:
          embed: makes the embeddings.
          probe: kernel [F, C] and bias [C] of an online probe.

        Returns:
          knn_top1, and online_linear_test_top1 if there are a probe and test images.
        """
        bank = embed_source(embed, self._bank, **self._how)
        query, query_labels = bank, self._bank.labels
        if self._query is not None:
            query = embed_source(embed, self._query, **self._how)
            query_labels = self._query.labels
        (top1,) = knn_top1(
            bank,
            self._bank.labels,
            query,
            query_labels,
            ks=(min(self._eval.knn_k, self._voters),),
            temperature=self._eval.knn_temperature,
            leave_one_out=self._query is None,
        )
        if probe is None or self._query is None:
            return {"knn_top1": top1}
        scores = linear_scores(query, **probe)
        of_probe = top_k_accuracy(scores, query_labels, 1)
        return {"knn_top1": top1, "online_linear_test_top1": of_probe}
