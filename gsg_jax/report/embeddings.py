"""What embeddings show: maps, clusters, spectrum, neighbours, confusion."""

import itertools
from typing import NamedTuple

import numpy as np

from gsg_jax.console import UserError
from gsg_jax.data.open import Source
from gsg_jax.evaluation.knn import knn_scores, neighbours

PCA_CHANNELS = 50  # input of t-SNE and UMAP
PERPLEXITY = 30  # of t-SNE; a third of the images if they are few
FEWEST = 4  # images that a map needs
MAX_CLUSTERS = 10
SAME = 1e-5  # range of a channel of unit embeddings; float32's rounding is below


class EmbeddedImages(NamedTuple):
    """Images and their embeddings.

    Attributes:
      source: the images.
      h: embeddings, float32 [N, F], finite.
      label: int32 [N], -1 if unknown.
      split: their name for the reader, such as "training images".
    """

    source: Source
    h: np.ndarray
    label: np.ndarray
    split: str


def is_collapsed(h: np.ndarray) -> bool:
    """Returns whether embeddings [N, F] all point in one direction, up to rounding."""
    return bool(np.ptp(_unit(h), axis=0).max() < SAME)


def _unit(h: np.ndarray) -> np.ndarray:
    """Scales embeddings to length 1, as cosines do."""
    return h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)


def principal_components(h: np.ndarray, num: int) -> np.ndarray:
    """Projects embeddings on the directions in which they differ most.

    Args:
      h: embeddings, [N, F].
      num: number of directions.

    Returns:
      Coordinates, float32 [N, num], of falling variance; 0 beyond the first min(N, F).
    """
    from sklearn.decomposition import PCA  # its import takes a second that only reports need

    kept = min(num, *h.shape)
    coordinates = PCA(kept, svd_solver="covariance_eigh", random_state=0).fit_transform(h)
    return np.pad(coordinates, ((0, 0), (0, num - kept))).astype(np.float32)


def embedding_maps(h: np.ndarray, *, seed: int, umap: bool) -> dict[str, np.ndarray]:
    """Maps embeddings onto a plane on which similar images lie close together.

    Args:
      h: embeddings, [N, F], N at least FEWEST.
      seed: of t-SNE and UMAP.
      umap: whether to add UMAP's map; call check_umap first.

    Returns:
      {name: float32 [N, 2]}: t-SNE, PCA, and UMAP if asked for.
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
        from umap import UMAP

        num = min(15, len(channels) - 1)
        places.append(UMAP(n_neighbors=num, random_state=seed, n_jobs=1).fit_transform(channels))
    return {name: place.astype(np.float32) for name, place in zip(names, places, strict=True)}


def check_umap() -> None:
    """Raises UserError if UMAP is not installed."""
    try:
        import umap  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--config.report.umap=true needs umap-learn ({error}): pip install 'gsg_jax[report]', "
            "or leave it out"
        ) from error


def clusters(h: np.ndarray, *, seed: int) -> np.ndarray:
    """Groups similar images, for images without labels.

    Args:
      h: embeddings, [N, F].
      seed: of k-means.

    Returns:
      The cluster of each image, int32 [N]; 0 is the largest of at most MAX_CLUSTERS.
    """
    from sklearn.cluster import KMeans

    unit = _unit(h)
    num = min(MAX_CLUSTERS, len(np.unique(unit, axis=0)), max(1, len(h) // 4))
    found = KMeans(num, n_init=4, random_state=seed).fit_predict(unit)
    by_size = np.argsort(-np.bincount(found, minlength=num), kind="stable")
    return np.argsort(by_size)[found].astype(np.int32)


def spectrum(h: np.ndarray) -> np.ndarray:
    """Computes the shares of the variance along the principal directions.

    Args:
      h: embeddings, [N, F].

    Returns:
      float64 [min(N - 1, F)], falling, with sum 1; all 0 if nothing varies.
    """
    centred = h.astype(np.float64) - h.mean(axis=0, dtype=np.float64)[None]
    rows, columns = centred.shape
    gram = centred.T @ centred if columns <= rows else centred @ centred.T
    values = np.linalg.eigvalsh(gram)[::-1][: min(rows - 1, columns)]
    values = np.maximum(values, 0)
    total = values.sum()
    return values / total if total > 0 else values


def effective_rank(shares: np.ndarray) -> float:
    """The effective rank of variance shares, as for a batch in methods/diagnostics.py."""
    singular = np.sqrt(shares[shares > 0])
    singular /= singular.sum()
    return float(np.exp(-(singular * np.log(singular)).sum()))


class Neighbours(NamedTuple):
    """A query and its most similar images.

    Attributes:
      query: its row.
      rows: of the bank, the most similar first.
      similarity: cosines of these rows with the query.
    """

    query: int
    rows: np.ndarray
    similarity: np.ndarray


def gallery(
    bank: EmbeddedImages, query: EmbeddedImages, *, num_queries: int, k: int
) -> list[Neighbours]:
    """Finds the nearest neighbours of some queries.

    Args:
      bank: where neighbours are searched; the same object as `query` if an image must not be its
        own neighbour.
      query: the images from which queries are chosen.
      num_queries: number of queries: each class in turn, or evenly spaced without labels.
      k: number of neighbours; fewer if the bank has fewer.

    Returns:
      The neighbours of each query.
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
    """Chooses evenly spaced rows, one of every class before a second one of any."""
    spaced = np.linspace(0, len(labels) - 1, min(len(labels), 50 * num)).round().astype(int)
    by_class: dict[int, list[int]] = {}
    for row in spaced:
        by_class.setdefault(int(labels[row]), []).append(int(row))
    if len(by_class) == 1:
        return list(dict.fromkeys(np.linspace(0, len(labels) - 1, num).round().astype(int)))
    turns = itertools.zip_longest(*(by_class[label] for label in sorted(by_class)))
    return [row for turn in turns for row in turn if row is not None][:num]


class Confusion(NamedTuple):
    """The true and the predicted classes of images by k-NN.

    Attributes:
      label: the true classes, int [N].
      prediction: the predicted classes, int [N].
      num_classes: C.
      k: number of neighbours that voted.
      num_voters: number of images that could vote.
    """

    label: np.ndarray
    prediction: np.ndarray
    num_classes: int
    k: int
    num_voters: int

    @property
    def top1(self) -> float:
        """The share of correct predictions."""
        return float(np.mean(self.label == self.prediction))

    @property
    def totals(self) -> np.ndarray:
        """The number of images of each class, int [C]."""
        return np.bincount(self.label, minlength=self.num_classes)

    @property
    def recall(self) -> np.ndarray:
        """The share of correct predictions in each class, float [C]; NaN if it has no image."""
        hits = self.label[self.label == self.prediction]
        num_hits = np.bincount(hits, minlength=self.num_classes)
        return np.where(self.totals, num_hits / np.maximum(self.totals, 1), np.nan)

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix, int [C, C]; rows are the true classes."""
        counts = np.zeros((self.num_classes, self.num_classes), np.int64)
        np.add.at(counts, (self.label, self.prediction), 1)
        return counts

    def most_confused(self, num: int) -> list[tuple[int, int, int]]:
        """Returns at most `num` (true class, predicted class, images), the most frequent first."""
        is_wrong = self.label != self.prediction
        pairs = np.stack([self.label[is_wrong], self.prediction[is_wrong]], axis=1)
        pairs, counts = np.unique(pairs, axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:num]
        return [(int(pairs[n, 0]), int(pairs[n, 1]), int(counts[n])) for n in order]


def confusion(
    bank: EmbeddedImages, query: EmbeddedImages, *, k: int, temperature: float, num_classes: int
) -> Confusion:
    """Classifies images by k-NN, as the run's monitor does.

    Args:
      bank: the images that vote; the same object as `query` if none may vote for itself.
      query: the images to classify.
      k: number of neighbours; fewer if fewer can vote.
      temperature: of the votes.
      num_classes: C.

    Returns:
      The result; images of unknown class neither vote nor are classified.
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
