"""L-BFGS reaches the optimum that float64 solvers reach."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from gsg_jax.evaluation.logistic import binary_loss, fit, linear_scores, softmax_loss, sweep
from gsg_jax.evaluation.scores import mean_average_precision, top_k_accuracy
from tests.evaluation.planted import digits, gaussians

# The tests share their shapes: compiling the line search is most of their time.
points = partial(gaussians, 203, 307, num_classes=5, num_channels=7)
DATA = {"digits": digits, "gaussians": partial(points, seed=0)}
top1 = partial(top_k_accuracy, k=1)


def reference(features, labels, l2):
    """scikit-learn works in the features' precision."""
    features = np.asarray(features, np.float64)
    model = LogisticRegression(C=1 / (l2 * len(features)), tol=1e-8, max_iter=10000)
    return model.fit(features, labels)


def probabilities(features, fitted):
    return special.softmax(linear_scores(features, fitted.kernel, fitted.bias), axis=1)


@pytest.mark.parametrize(
    ("data", "l2"), [("digits", 1e-2), ("gaussians", 1e-4), ("gaussians", 300.0)]
)
def test_accuracy_and_probabilities_equal_scikit_learn(data, l2):
    (train, labels), (test, test_labels) = DATA[data]()
    expected = reference(train, labels, l2)
    num_classes = len(expected.classes_)
    fitted = fit(train, labels, num_classes=num_classes, l2=l2, tolerance=1e-6)
    assert fitted.num_steps < 1000 and fitted.gradient_norm <= 1e-6
    np.testing.assert_allclose(probabilities(test, fitted), expected.predict_proba(test), atol=1e-3)
    accuracy = top1(linear_scores(test, fitted.kernel, fitted.bias), test_labels)
    assert accuracy == pytest.approx(expected.score(test, test_labels), abs=0.005)


def test_the_kernel_is_where_a_float64_solver_of_the_written_objective_ends():
    (features, labels), _ = points(seed=1)
    l2 = 0.03

    def objective(flat):
        kernel, bias = flat[:35].reshape(7, 5), flat[35:]
        log_shares = special.log_softmax(features @ kernel + bias, axis=1)
        return l2 / 2 * np.sum(kernel**2) - np.mean(log_shares[np.arange(203), labels])

    solution = optimize.minimize(objective, np.zeros(40)).x
    fitted = fit(features, labels, num_classes=5, l2=l2, tolerance=1e-6)
    np.testing.assert_allclose(fitted.kernel, solution[:35].reshape(7, 5), atol=1e-3)
    # A bias is free up to a constant.
    bias = solution[35:] - solution[35:].mean()
    np.testing.assert_allclose(fitted.bias - np.mean(fitted.bias), bias, atol=1e-3)


def test_a_multi_label_fit_is_one_binary_fit_a_class_without_its_ignored_images(l2=0.1):
    (features, _), _ = points(seed=2)
    rng = np.random.default_rng(3)
    latent = features @ rng.normal(size=(7, 5)) + 2 * rng.normal(size=(203, 5)) - 1
    labels = np.where(rng.random((203, 5)) < 0.2, -1, latent > 0)
    fitted = fit(features, labels, num_classes=5, l2=l2, loss=binary_loss, tolerance=1e-6)
    for c in range(5):
        counts = labels[:, c] >= 0
        expected = reference(features[counts], labels[counts, c], l2)
        np.testing.assert_allclose(fitted.kernel[:, c], expected.coef_[0], atol=1e-3)
        np.testing.assert_allclose(fitted.bias[c], expected.intercept_[0], atol=1e-3)


def test_the_losses_equal_plain_loops():
    rng = np.random.default_rng(4)
    logits = 9 * rng.normal(size=(23, 3))
    labels = rng.integers(0, 3, size=23)
    entropies = [special.logsumexp(z) - z[y] for z, y in zip(logits, labels, strict=True)]
    as_float32 = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(
        softmax_loss(as_float32, jnp.asarray(labels)), np.mean(entropies), rtol=1e-5
    )
    targets = rng.choice([-1, 0, 1], size=(23, 3))
    targets[:, 1] = -1
    expected = 0
    for c in [0, 2]:
        of_class = [
            -np.log(special.expit(z if y else -z))
            for z, y in zip(logits[:, c], targets[:, c], strict=True)
            if y >= 0
        ]
        expected += np.mean(of_class)
    np.testing.assert_allclose(binary_loss(as_float32, jnp.asarray(targets)), expected, rtol=1e-5)


def test_steps_and_gradient_tell_whether_a_fit_has_converged():
    (features, labels), _ = points(seed=5)
    cut = fit(features, labels, num_classes=5, l2=1e-3, max_steps=3)
    assert cut.num_steps == 3 and cut.gradient_norm > 1e-5
    whole = fit(features, labels, num_classes=5, l2=1e-3)
    assert 3 < whole.num_steps < 1000 and whole.gradient_norm <= 1e-5
    again = fit(features, labels, num_classes=5, l2=1e-3, start=whole)
    assert again.num_steps == 0
    np.testing.assert_allclose(again.kernel, whole.kernel, rtol=1e-6)


def test_the_strongest_regularisation_of_the_protocol_takes_few_steps_too():
    (features, labels), _ = points(seed=9)
    labels = np.minimum(labels, 1)
    fitted = fit(features, labels, num_classes=5, l2=1e5, tolerance=1e-6)
    assert fitted.num_steps < 40
    shares = np.mean(probabilities(features, fitted), axis=0)
    np.testing.assert_allclose(shares, np.bincount(labels, minlength=5) / 203, atol=1e-3)


sweep_of = partial(sweep, num_classes=5)


def test_a_sweep_equals_fits_from_zero_and_takes_the_best():
    (train, labels), (val, val_labels) = points(seed=6)
    l2s = [0.1, 1e-3, 1e3, 3.0, 1e-2]
    found = sweep_of(train, labels, val, val_labels, l2s=l2s, metric=top1, tolerance=1e-6)
    figures = []
    for l2 in l2s:
        alone = fit(train, labels, num_classes=5, l2=l2, tolerance=1e-6)
        figures.append(top1(linear_scores(val, alone.kernel, alone.bias), val_labels))
        if l2 == found.l2:
            np.testing.assert_allclose(found.fit.kernel, alone.kernel, atol=1e-3)
    np.testing.assert_allclose(found.figures, figures, atol=1.5 / 307)
    assert found.l2 == l2s[np.argmax(found.figures)]
    figure = top1(linear_scores(val, found.fit.kernel, found.fit.bias), val_labels)
    assert figure == max(found.figures)
    assert all(f.num_steps < 1000 and f.gradient_norm <= 1e-6 for f in found.fits)


def test_a_sweep_traces_once_begins_where_it_was_and_takes_the_strongest_of_equals():
    (train, labels), (val, val_labels) = points(seed=7)
    traces = []

    def counted_loss(logits, labels):
        traces.append(1)
        return softmax_loss(logits, labels)

    def traces_so_far(scores, labels):
        judged.append(len(traces))
        return 0.5

    judged, l2s = [], [0.01, 0.0101, 0.0102]
    options = {"metric": traces_so_far, "loss": counted_loss}
    found = sweep_of(train, labels, val, val_labels, l2s=l2s, **options)
    assert judged == [judged[0]] * 3
    assert found.l2 == 0.0102
    weak, middle, strong = (fitted.num_steps for fitted in found.fits)
    assert max(weak, middle) < 0.75 * strong


def test_a_sweep_of_multi_label_targets_is_judged_by_average_precision():
    (train, classes), (val, val_classes) = points(seed=8)
    labels, val_labels = np.eye(5, dtype=int)[classes], np.eye(5, dtype=int)[val_classes]
    options = {"metric": mean_average_precision, "loss": binary_loss}
    found = sweep_of(train, labels, val, val_labels, l2s=[1.0, 0.01], **options)
    models = [reference(train, labels[:, c], found.l2) for c in range(5)]
    scores = np.stack([model.decision_function(val) for model in models], axis=1)
    figure = mean_average_precision(scores, val_labels)
    assert max(found.figures) == pytest.approx(figure, abs=0.005)
