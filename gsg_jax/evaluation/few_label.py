"""Few-label accuracy: logistic regression on a handful of labelled images per class."""

from collections.abc import Sequence

import numpy as np

from gsg_jax.console import UserError, say
from gsg_jax.evaluation.features import standardize
from gsg_jax.evaluation.splits import drawn_by_class

C = 0.1  # scikit-learn's: the weight of the total cross-entropy against the kernel's penalty
NUM_DRAWS = 10
SMALL = 2**24  # numbers of a product below which a second thread costs more than it saves


def few_label_figures(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_images: Sequence[int],
    num_draws: int = NUM_DRAWS,
    c: float = C,
) -> dict[str, float]:
    """Accuracy on test images of classifiers that see a few labelled images of every class.

    Nothing but these images enters a classifier, not even the scale of the channels. The draws
    depend on the labels alone, so that all encoders are compared on the same draws.

    Args:
      train: embeddings to draw from, [N, F].
      train_labels: int [N]; -1 is unknown.
      test: embeddings to classify, [M, F].
      test_labels: int [M].
      num_images: labelled images per class; a class that has fewer gives all.
      num_draws: at least 2.
      c: of `few_label_classifier`.

    Returns:
      few_label_<k>, the mean accuracy over the draws in [0, 1], and few_label_<k>_error, its
      standard error over the draws, for each k of num_images.

    Raises:
      UserError: if fewer than two classes have a labelled image.
    """
    classes = np.unique(train_labels[train_labels >= 0])
    if len(classes) < 2:
        raise UserError(
            f"few labels: images of {len(classes)} class have labels: give two or more classes"
        )
    figures = {}
    for k in num_images:
        accuracies = []
        for seed in range(num_draws):
            rows = drawn_by_class(train_labels, k, seed)
            few, queries = standardize(train[rows], test)
            kernel, bias = few_label_classifier(few, train_labels[rows], c)
            predictions = classes[np.argmax(queries @ kernel + bias[None, :], axis=1)]
            accuracies.append(np.mean(predictions == test_labels))
        figures[f"few_label_{k}"] = float(np.mean(accuracies))
        figures[f"few_label_{k}_error"] = float(np.std(accuracies, ddof=1) / np.sqrt(num_draws))
    return figures


def warn_of_small_classes(train_labels: np.ndarray, num_images: Sequence[int]) -> None:
    """Warns in one line if a class has fewer labelled images than are drawn."""
    classes, sizes = np.unique(train_labels[train_labels >= 0], return_counts=True)
    if len(classes) and sizes.min() < max(num_images):
        say(
            f"warning: few labels: class {classes[sizes.argmin()]} has {sizes.min()} images, fewer "
            f"than {max(num_images)}; a class gives all that it has"
        )


def few_label_classifier(
    features: np.ndarray, labels: np.ndarray, c: float = C
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression on a few rows, by scikit-learn.

    The kernel lies in the span of the rows, so with few rows it is solved for in coordinates of
    that span.

    Args:
      features: standardised rows, [n, F].
      labels: int [n], of C different values.
      c: c times the sum of the cross-entropies, plus half the kernel's squared norm, is minimised;
        the bias is free.

    Returns:
      (kernel, bias), float32 [F, C] and [C], of the classes in ascending order. Two classes have
      the scores -s / 2 and s / 2, where s is the binary classifier's score.
    """
    # Imported here because it takes a second.
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    basis, rows = None, features
    is_small = features.size * len(np.unique(labels)) < SMALL
    with threadpool_limits(1 if is_small else None):
        if 2 * len(features) < features.shape[1]:
            left, lengths, basis = np.linalg.svd(features.astype(np.float64), full_matrices=False)
            rows = left * lengths[None, :]
        solved = LogisticRegression(C=c, tol=1e-5, max_iter=1000).fit(rows, labels)
        kernel = solved.coef_.T if basis is None else basis.T @ solved.coef_.T
    bias = solved.intercept_
    if kernel.shape[1] == 1:
        kernel, bias = kernel * [[-0.5, 0.5]], bias * [-0.5, 0.5]
    return kernel.astype(np.float32), bias.astype(np.float32)
