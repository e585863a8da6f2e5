"""What can be seen of embeddings: maps, clusters, spectrum, neighbours, confusion."""

from typing import NamedTuple

import numpy as np

from gsg_jax.console import UserError
from gsg_jax.data.open import Source
from gsg_jax.evaluation.knn import knn_scores, neighbours

PCA_CHANNELS = 50  # that t-SNE and UMAP look at
PERPLEXITY = 30  # of t-SNE, or a third of the images where they are few
FEWEST = 4  # images that a map can be drawn of
MAX_CLUSTERS = 10
SAME = 1e-5  # of a channel of unit embeddings: float32's rounding is below


class EmbeddedImages(NamedTuple):
    """Images and what an encoder makes of them.

    Attributes:
      source: the images.
      h: embeddings, float32 [N, F], finite.
      label: int32 [N], -1 where unknown.
      split: what people call them: "training images".
    """

    source: Source
    h: np.ndarray
    label: np.ndarray
    split: str


def is_collapsed(h: np.ndarray) -> bool:
    """Whether embeddings [N, F] all point into one direction, but for rounding."""
    return bool(np.ptp(_unit(h), axis=0).max() < SAME)


def _unit(h: np.ndarray) -> np.ndarray:
    """Embeddings of length 1: what cosines look at."""
    return h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)


def principal_components(h: np.ndarray, num: int) -> np.ndarray:
    """The directions in which embeddings differ most.

    Args:
      h: embeddings, [N, F].
      num: how many directions, at most min(N, F).

    Returns:
      Coordinates, float32 [N, num], of falling variance; 0 where there are no more directions.
    """
    from sklearn.decomposition import PCA  # a second of import that only reports need

    kept = min(num, *h.shape)
    coordinates = PCA(kept, svd_solver="covariance_eigh", random_state=0).fit_transform(h)
    return np.pad(coordinates, ((0, 0), (0, num - kept))).astype(np.float32)


def embedding_maps(h: np.ndarray, *, seed: int, umap: bool) -> dict[str, np.ndarray]:
    """Maps of embeddings onto a plane, on which what is similar lies near.

    Args:
      h: embeddings, [N, F], N at least FEWEST.
      seed: of t-SNE and UMAP.
      umap: whether UMAP's is wanted, after check_umap.

    Returns:
      {name: float32 [N, 2]}: t-SNE, PCA, and UMAP where it is wanted.
    """
    from sklearn.manifold import TSNE

    unit = _unit(h)
    names = ("t-SNE", "PCA", "UMAP") if umap else ("t-SNE", "PCA")
    if is_collapsed(h):
        return {name: np.zeros((len(h), 2), np.float32) for name in names}
    channels = principal_components(unit, min(PCA_CHANNELS, *h.shape))
    channels = channels / float(channels.std())
    tsne = TSNE(
        perplexity=min(PERPLEXITY, (len(h) - 1) / 3),
        init="pca" if channels.shape[1] >= 2 else "random",
        max_iter=500,
        random_state=seed,
        n_jobs=-1,
    )
    places = [tsne.fit_transform(channels), principal_components(unit, 2)]
    if umap:
        places.append(_umap(channels, seed))
    return {name: place.astype(np.float32) for name, place in zip(names, places, strict=True)}


def check_umap() -> None:
    """Raises UserError where UMAP is not installed."""
    try:
        import umap  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--config.report.umap=true needs umap-learn ({error}): pip install 'gsg_jax[report]', "
            "or leave it out"
        ) from error


def _umap(channels: np.ndarray, seed: int) -> np.ndarray:
    from umap import UMAP

    num = min(15, len(channels) - 1)
    return UMAP(n_neighbors=num, random_state=seed, n_jobs=1).fit_transform(channels)


def clusters(h: np.ndarray, *, seed: int) -> np.ndarray:
    """Groups of similar images, for those that have no labels.

    Args:
      h: embeddings, [N, F].
      seed: of k-means.

    Returns:
      The cluster of each, int32 [N], the largest first, at most MAX_CLUSTERS.
    """
    from sklearn.cluster import KMeans

    unit = _unit(h)
    num = min(MAX_CLUSTERS, len(np.unique(unit, axis=0)), max(1, len(h) // 4))
    found = KMeans(num, n_init=4, random_state=seed).fit_predict(unit)
    by_size = np.argsort(-np.bincount(found, minlength=num), kind="stable")
    return np.argsort(by_size)[found].astype(np.int32)


def spectrum(h: np.ndarray) -> np.ndarray:
    """Shares of the variance along the principal directions.

    Args:
      h: embeddings, [N, F].

    Returns:
      float64 [min(N - 1, F)] of falling shares, whose sum is 1; all 0 where nothing varies.
    """
    centred = h.astype(np.float64) - h.mean(axis=0, dtype=np.float64)[None]
    rows, columns = centred.shape
    gram = centred.T @ centred if columns <= rows else centred @ centred.T
    values = np.linalg.eigvalsh(gram)[::-1][: min(rows - 1, columns)]
    values = np.maximum(values, 0)
    total = values.sum()
    return values / total if total > 0 else values


class Neighbours(NamedTuple):
    """A query and what is most similar to it.

    Attributes:
      query: its row.
      rows: of the bank, the most similar first.
      similarity: cosines of these.
    """

    query: int
    rows: np.ndarray
    similarity: np.ndarray


def gallery(
    bank: EmbeddedImages, query: EmbeddedImages, *, num_queries: int, k: int
) -> list[Neighbours]:
    """The nearest neighbours of some queries.

    Args:
      bank: where neighbours are looked for; the same object as `query` where no image is its own.
      query: the images that are asked about.
      num_queries: how many of them: by turns of each class, or evenly spaced without labels.
      k: neighbours of each, or fewer where the bank has fewer.

    Returns:
      The neighbours of each.
    """
    chosen = _by_turns(query.label, num_queries)
    itself = bank is query
    k = min(k, len(bank.h) - itself)
    if k < 1:
        return []
    similarity, index = neighbours(bank.h, query.h[chosen], k + itself)
    found = []
    for place, row in enumerate(chosen):
        kept = np.flatnonzero(index[place] != row)[:k] if itself else np.arange(k)
        found.append(Neighbours(int(row), index[place][kept], similarity[place][kept]))
    return found


def _by_turns(labels: np.ndarray, num: int) -> list[int]:
    """Rows, evenly spaced, and of every class before a second one of any."""
    spaced = np.linspace(0, len(labels) - 1, min(len(labels), 50 * num)).round().astype(int)
    by_class: dict[int, list[int]] = {}
    for row in spaced:
        by_class.setdefault(int(labels[row]), []).append(int(row))
    if len(by_class) == 1:
        return list(dict.fromkeys(np.linspace(0, len(labels) - 1, num).round().astype(int)))
    turns = max(map(len, by_class.values()))
    rows = [
        by_class[label][turn]
        for turn in range(turns)
        for label in sorted(by_class)
        if turn < len(by_class[label])
    ]
    return rows[:num]


class Confusion(NamedTuple):
    """What k-NN took images for.

    Attributes:
      label: the true classes, int [N].
      prediction: what they were taken for, int [N].
      num_classes: C.
      k: neighbours that voted.
      num_voters: images that could.
    """

    label: np.ndarray
    prediction: np.ndarray
    num_classes: int
    k: int
    num_voters: int

    @property
    def top1(self) -> float:
        """Share of the images that were taken for what they are."""
        return float(np.mean(self.label == self.prediction))

    @property
    def totals(self) -> np.ndarray:
        """Images of each class, int [C]."""
        return np.bincount(self.label, minlength=self.num_classes)

    @property
    def recall(self) -> np.ndarray:
        """The same share of each class, float [C]; NaN where it has no image."""
        hits = self.label[self.label == self.prediction]
        num_hits = np.bincount(hits, minlength=self.num_classes)
        return np.where(self.totals, num_hits / np.maximum(self.totals, 1), np.nan)

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix, int [C, C], rows are the true classes."""
        counts = np.zeros((self.num_classes, self.num_classes), np.int64)
        np.add.at(counts, (self.label, self.prediction), 1)
        return counts

    def most_confused(self, num: int) -> list[tuple[int, int, int]]:
        """(true class, class it was taken for, images), the most frequent first, at most `num`."""
        is_wrong = self.label != self.prediction
        pairs = np.stack([self.label[is_wrong], self.prediction[is_wrong]], axis=1)
        pairs, counts = np.unique(pairs, axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:num]
        return [(int(pairs[n, 0]), int(pairs[n, 1]), int(counts[n])) for n in order]


def confusion(
    bank: EmbeddedImages, query: EmbeddedImages, *, k: int, temperature: float, num_classes: int
) -> Confusion:
    """Classifies images by k-NN, as the monitor does.

    Args:
      bank: the images that vote; the same object as `query` where none votes for itself.
      query: the images to classify.
      k: neighbours, or fewer where fewer can vote.
      temperature: of the votes.
      num_classes: C.

    Returns:
      What was found; images whose label is not known neither vote nor are classified.
    """
    itself = bank is query
    votes, asked = bank.label >= 0, query.label >= 0
    k = min(k, int(votes.sum()) - itself)
    scores = knn_scores(
        bank.h[votes],
        bank.label[votes],
        query.h[asked],
        k=k,
        temperature=temperature,
        num_classes=num_classes,
        leave_one_out=itself,
    )
    prediction = scores.argmax(axis=1)
    return Confusion(query.label[asked], prediction, num_classes, k, int(votes.sum()) - itself)
