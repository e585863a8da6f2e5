"""Few-label accuracy: the classifier's optimum, the draws, and what is reported of them."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gsg_jax.console import UserError
from gsg_jax.evaluation.few_label import (
    few_label_classifier,
    few_label_figures,
    warn_of_small_classes,
)
from gsg_jax.evaluation.splits import drawn_by_class
from tests.evaluation.planted import gaussians


def newton(x, y, c):
    """Softmax regression in float64, its kernel regularised and its bias free, by Newton's method.

    Minimises c x sum of cross-entropies + ||kernel||^2 / 2.
    """
    x = np.append(x.astype(np.float64), np.ones((len(x), 1)), axis=1)  # [n, F + 1]
    num_channels, num_classes = x.shape[1], y.max() + 1
    weights = np.zeros((num_channels, num_classes))
    penalty = np.repeat(np.append(np.ones(num_channels - 1), 1e-9), num_classes)
    for _ in range(30):
        scores = np.exp(x @ weights)
        shares = scores / scores.sum(axis=1, keepdims=True)
        gradient = c * x.T @ (shares - np.eye(num_classes)[y])
        hessian = np.zeros((weights.size, weights.size))
        for row, share in zip(x, shares, strict=True):
            hessian += c * np.kron(np.outer(row, row), np.diag(share) - np.outer(share, share))
        full = gradient.ravel() + penalty * weights.ravel()
        weights -= np.linalg.solve(hessian + np.diag(penalty), full).reshape(weights.shape)
    return weights[:-1], weights[-1]


@pytest.mark.parametrize("num_channels", [5, 23])  # the second is solved for in the rows' span
def test_the_classifier_is_the_optimum_of_a_plain_newton_solver(num_channels, c=0.3):
    ((x, y),) = gaussians(10, num_classes=3, num_channels=num_channels, seed=3)
    x = x.astype(np.float32)
    kernel, bias = few_label_classifier(x, y, c)
    wanted, wanted_bias = newton(x, y, c)
    np.testing.assert_allclose(kernel, wanted, atol=2e-3 * np.abs(wanted).max())
    differences = (bias - bias[0], wanted_bias - wanted_bias[0])  # a constant changes no class
    np.testing.assert_allclose(*differences, atol=2e-3)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_figures_equal_those_of_scikit_learn_on_the_same_draws(num_classes):
    (train, labels), (test, test_labels) = gaussians(
        151, 83, num_classes=num_classes, num_channels=19, seed=1
    )
    figures = few_label_figures(train, labels, test, test_labels, num_images=(1, 4), num_draws=3)
    for k in (1, 4):
        accuracies = []
        for draw in range(3):
            rows = drawn_by_class(labels, k, draw)
            peer = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8))
            accuracies.append(peer.fit(train[rows], labels[rows]).score(test, test_labels))
        error = np.std(accuracies, ddof=1) / np.sqrt(3)
        assert figures[f"few_label_{k}"] == pytest.approx(np.mean(accuracies), abs=1e-6)
        assert figures[f"few_label_{k}_error"] == pytest.approx(error, abs=1e-6) and error > 0
    assert list(figures) == [
        *("few_label_1", "few_label_1_error", "few_label_4", "few_label_4_error")
    ]


def test_draws_have_equally_many_of_every_class_and_are_nested_and_differ():
    labels = np.random.default_rng(4).integers(-1, 4, 200)  # -1 is unknown
    draws = [drawn_by_class(labels, 7, seed) for seed in range(5)]
    for seed, rows in enumerate(draws):
        assert np.bincount(labels[rows]).tolist() == [7] * 4
        assert set(drawn_by_class(labels, 2, seed)) < set(rows)
    assert len({tuple(rows) for rows in draws}) == 5


def test_labels_need_not_be_whole_numbers_from_zero_on():
    (train, labels), (test, test_labels) = gaussians(90, 40, num_classes=3, num_channels=8, seed=2)
    names = np.array([2, 5, 9])  # the classes between have no image
    plain = few_label_figures(train, labels, test, test_labels, num_images=(3,))
    assert plain == few_label_figures(
        train, names[labels], test, names[test_labels], num_images=(3,)
    )


def test_a_class_with_fewer_images_gives_all_and_is_named_once(capsys):
    labels = np.array([0] * 8 + [1] * 3 + [-1])
    assert np.bincount(labels[drawn_by_class(labels, 5, 0)]).tolist() == [5, 3]
    warn_of_small_classes(labels, (1, 3))
    assert not capsys.readouterr().err
    warn_of_small_classes(labels, (1, 5))
    assert capsys.readouterr().err.count("class 1 has 3 images, fewer than 5") == 1


def test_one_class_is_refused():
    labels = np.array([3, 3, -1])
    with pytest.raises(UserError, match="give two or more"):
        few_label_figures(np.zeros((3, 2)), labels, np.zeros((1, 2)), labels[:1], num_images=(1,))
