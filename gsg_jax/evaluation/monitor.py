"""The monitor: figures of quality during pretraining."""

import ml_collections
import numpy as np

from gsg_jax.config.keys import FEW_LABELS
from gsg_jax.console import UserError, say
from gsg_jax.data.open import Source
from gsg_jax.data.source import Subset, known_images
from gsg_jax.evaluation.features import Embed, embed_source
from gsg_jax.evaluation.few_label import few_label_figures, warn_of_small_classes
from gsg_jax.evaluation.knn import cut_to_bank, knn_top1
from gsg_jax.evaluation.logistic import linear_scores
from gsg_jax.evaluation.ranks import MAX_RANKME_ROWS, lidar, rankme
from gsg_jax.evaluation.scores import top_k_accuracy
from gsg_jax.run.record import baseline_name

# Rows of a few-label classifier times its classes: above this its fits take minutes on a CPU.
MAX_FEW_LABEL_SCORES = 2**20
MAX_LIDAR_IMAGES = 1000  # the paper's


class Monitor:
    """Scores an embedding function by k-NN: `k` training images vote on each test image.

    With labelled test images, logistic regression on a few labels scores it too. Without any labels
    RankMe and LiDAR are its only figures.

    Without a labelled test set, every training image is classified by the others. If the training
    set is larger than eval.max_bank, the bank has evenly spaced images of it. Images with unknown
    labels are left out.
    """

    def __init__(self, config: ml_collections.ConfigDict, train: Source, test: Source | None):
        """Keeps the two sources.

        Raises:
          UserError: if `train` has classes, but fewer than two images of the bank have a label.
        """
        self._eval, self.has_labels = config.eval, bool(train.class_names)
        size = config.views.size if config.data.crop == "host" else None
        self._how = {"batch_size": config.eval.batch_size, "size": size}
        if not self.has_labels:
            self._bank = _spaced(train, min(config.eval.max_bank, MAX_RANKME_ROWS))
            self.k, self._query, self._few_labels = 0, None, ()
            return
        self._bank = known_images(_spaced(train, config.eval.max_bank))
        if len(self._bank) < 2:
            raise UserError(
                f"{train.name}: {len(self._bank)} of its images have a label, which k-NN needs: "
                "set --config.eval.knn_every_epochs=0"
            )
        query = known_images(test) if test is not None and test.class_names else ()
        self._query = query if len(query) else None
        voters = len(self._bank) - (self._query is None)  # no image votes for itself
        (self.k,) = cut_to_bank((config.eval.knn_k,), voters)
        self._few_labels = self._scored_few_labels() if config.eval.few_label else ()

    def figures(
        self,
        embed: Embed,
        probe: dict | None = None,
        *,
        is_whole: bool = False,
        view_embed: Embed | None = None,
    ) -> dict[str, float]:
        """Top-1 accuracies in [0, 1], and ranks of the embeddings.

        Args:
          embed: makes the embeddings.
          probe: kernel [F, C] and bias [C] of an online probe.
          is_whole: whether few-label accuracy is measured too.
          view_embed: makes the embeddings of eval.lidar_views views side by side; None leaves the
            ranks out.

        Returns:
          knn_top1 if there are labels; rankme with view_embed, and lidar with eval.lidar_views;
          online_linear_test_top1 if there are a probe and test images; few_label_<k> and its
          _error if is_whole and there are test images.
        """
        bank = embed_source(embed, self._bank, **self._how)
        if not self.has_labels:
            return self._ranks(bank, view_embed)
        query, query_labels = bank, self._bank.labels
        if self._query is not None:
            query = embed_source(embed, self._query, **self._how)
            query_labels = self._query.labels
        (top1,) = knn_top1(
            bank,
            self._bank.labels,
            query,
            query_labels,
            ks=(self.k,),
            temperature=self._eval.knn_temperature,
            leave_one_out=self._query is None,
        )
        figures = {"knn_top1": top1} | self._ranks(bank, view_embed)
        if probe is not None and self._query is not None:
            scores = linear_scores(query, **probe)
            figures["online_linear_test_top1"] = top_k_accuracy(scores, query_labels, 1)
        if is_whole and self._few_labels:
            figures |= few_label_figures(
                bank, self._bank.labels, query, query_labels, num_images=self._few_labels
            )
        return figures

    def _ranks(self, bank: np.ndarray, view_embed: Embed | None) -> dict[str, float]:
        """RankMe, and LiDAR if it is asked for; {} without view_embed."""
        if view_embed is None:
            return {}
        figures = {"rankme": rankme(bank)}
        if num_views := self._eval.lidar_views:
            batch_size = max(self._eval.batch_size // num_views, 1)
            how = self._how | {"batch_size": batch_size}
            views = embed_source(view_embed, _spaced(self._bank, MAX_LIDAR_IMAGES), **how)
            figures["lidar"] = lidar(views.reshape(len(views), num_views, -1))
        return figures

    def baselines(self, encoders: dict[str, Embed]) -> dict[str, float]:
        """The figures of some encoders by their BASELINES' names, and knn_k."""
        figures = {
            baseline_name(name, who): value
            for who, embed in encoders.items()
            for name, value in self.figures(embed, is_whole=True).items()
        }
        return figures | {"knn_k": self.k}

    def _scored_few_labels(self) -> tuple[int, ...]:
        """Which of FEW_LABELS are scored; a line says why others are not."""
        labels = self._bank.labels
        num_classes = len(np.unique(labels))
        if self._query is None or num_classes < 2:
            return ()
        quick = tuple(k for k in FEW_LABELS if k * num_classes**2 <= MAX_FEW_LABEL_SCORES)
        if left_out := [str(k) for k in FEW_LABELS if k not in quick]:
            say(
                f"few labels: with {num_classes:,} classes {', '.join(left_out)} labels a class "
                "would take minutes: configs/few_label.py scores them after the run"
            )
        if quick:
            warn_of_small_classes(labels, quick)
        return quick


def _spaced(source: Source, most: int) -> Source:
    """At most `most` images of a source, evenly spaced."""
    if len(source) <= most:
        return source
    return Subset(source, np.linspace(0, len(source) - 1, most).round().astype(np.int64))
