"""A grid of probes is as many plain SGD runs, and chosen on held-out images."""

from functools import partial

import jax
import numpy as np
import pytest
from scipy import special

from gsg_jax.evaluation.logistic import linear_scores
from gsg_jax.evaluation.probe import fit_probe, select_probe, train_probes
from gsg_jax.evaluation.scores import mean_per_class, top_k_accuracy
from gsg_jax.evaluation.splits import split_held_out
from tests.evaluation.planted import gaussians

top1 = partial(top_k_accuracy, k=1)


def plain_sgd(features, labels, learning_rate, weight_decay, *, num_epochs, batch_size, key):
    num_classes, momentum = 4, 0.9
    kernel, bias = np.zeros((features.shape[1], num_classes)), np.zeros(num_classes)
    kernel_velocity, bias_velocity = np.zeros_like(kernel), np.zeros_like(bias)
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    for step in range(num_epochs * steps_per_epoch):
        epoch, place = divmod(step, steps_per_epoch)
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), len(features)))
        rows = order[place * batch_size : (place + 1) * batch_size]
        kernel_gradient, bias_gradient = weight_decay * kernel, np.zeros(num_classes)
        for row in rows:
            error = special.softmax(features[row] @ kernel + bias)
            error[labels[row]] -= 1
            kernel_gradient += np.outer(features[row], error) / batch_size
            bias_gradient += error / batch_size
        kernel_velocity = momentum * kernel_velocity + kernel_gradient
        bias_velocity = momentum * bias_velocity + bias_gradient
        rate = learning_rate * batch_size / 256
        rate *= 0.5 * (1 + np.cos(np.pi * step / (num_epochs * steps_per_epoch)))
        kernel = kernel - rate * (kernel_gradient + momentum * kernel_velocity)
        bias = bias - rate * (bias_gradient + momentum * bias_velocity)
    return kernel, bias


def train_small(features, labels, learning_rates, weight_decays, **options):
    """Probes of these rates and decays, of four classes unless told otherwise."""
    grid = {"learning_rates": learning_rates, "weight_decays": weight_decays}
    few = {"num_classes": 4, "num_epochs": 5, "batch_size": 32, "momentum": 0.9}
    return train_probes(features, labels, **grid, **few | options)


@pytest.mark.parametrize("batch_size", [17, 1000])
def test_every_probe_of_a_grid_equals_plain_sgd_alone(batch_size):
    ((features, labels),) = gaussians(61, num_classes=4, num_channels=5, seed=0)
    options = {"num_epochs": 5, "batch_size": batch_size, "key": jax.random.key(3)}
    rates, decays = [0.3, 3.0, 1.0], [0.0, 0.02, 0.5]
    probes = train_small(features, labels, rates, decays, **options)
    for p in range(3):
        kernel, bias = plain_sgd(features, labels, rates[p], decays[p], **options)
        np.testing.assert_allclose(probes.kernel[p], kernel, atol=1e-4)
        np.testing.assert_allclose(probes.bias[p], bias, atol=1e-4)


def test_the_orders_depend_on_the_key_alone():
    ((features, labels),) = gaussians(61, num_classes=4, num_channels=5, seed=2)
    train = partial(train_small, features, labels, [1.0] * 3, [0.0] * 3, batch_size=17)
    once, again, other = (train(key=jax.random.key(seed)).kernel for seed in [0, 0, 1])
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once[0], once[2])
    assert not np.array_equal(once, other)


RATES, DECAYS = [0.001, 1.0, 0.1], [1e-3, 0.1]


def fit_small(features, labels, **options):
    few = {"num_classes": 4, "num_epochs": 5, "batch_size": 32, "momentum": 0.9, "seed": 5}
    few |= {"learning_rates": RATES, "weight_decays": DECAYS, "held_out": 0.25, "metric": top1}
    return fit_probe(features, labels, **few | options)


def test_the_chosen_probe_is_the_best_on_the_held_out_part_trained_again_on_all():
    metric = mean_per_class
    ((features, labels),) = gaussians(151, num_classes=4, num_channels=5, seed=3)
    chosen = fit_small(features, labels, metric=metric)
    fitted, held_out = split_held_out(labels, 0.25, seed=5)
    train = partial(train_small, key=jax.random.key(5))
    figures = np.zeros((3, 2))
    for i, rate in enumerate(RATES):
        for j, decay in enumerate(DECAYS):
            alone = train(features[fitted], labels[fitted], [rate], [decay])
            scores = linear_scores(features[held_out], alone.kernel[0], alone.bias[0])
            figures[i, j] = metric(scores, labels[held_out])
    np.testing.assert_allclose(chosen.held_out_figures, figures, atol=1e-6)
    best = max((figures[i, j], -rate, -j) for i, rate in enumerate(RATES) for j in range(2))
    assert (chosen.learning_rate, chosen.weight_decay) == (-best[1], DECAYS[-best[2]])
    whole = train(features, labels, [chosen.learning_rate], [chosen.weight_decay])
    np.testing.assert_allclose(chosen.kernel, whole.kernel[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(chosen.bias, whole.bias[0], rtol=1e-5, atol=1e-6)


def test_of_equal_figures_the_smallest_learning_rate_wins_and_nan_never():
    assert select_probe(np.array([0.5, 0.7, 0.7, np.nan]), [1, 3, 2, 0.1]) == 2
    assert select_probe(np.array([np.nan, 0.0]), [1, 3]) == 1
    assert select_probe(np.array([0.7, 0.7]), [1, 1]) == 0


def test_a_probe_that_diverged_has_no_figure_and_does_not_win():
    ((features, labels),) = gaussians(151, num_classes=4, num_channels=5, seed=4)
    chosen = fit_small(features, labels, learning_rates=[1e30, 1.0, 0.1], num_epochs=20)
    assert np.isnan(chosen.held_out_figures[0]).all()
    assert np.isfinite(chosen.held_out_figures[1:]).all()
    assert chosen.learning_rate != 1e30
    assert np.isfinite(chosen.kernel).all()


def test_where_all_diverge_or_nothing_can_be_held_out_an_error_says_so():
    ((features, labels),) = gaussians(151, num_classes=4, num_channels=5, seed=4)
    with pytest.raises(ValueError, match=r"all 6 probes diverged, .* was 1e\+28: take smaller"):
        fit_small(features, labels, learning_rates=[1e30, 1e29, 1e28], num_epochs=20)
    with pytest.raises(ValueError, match="none of the 4 images can be held out"):
        fit_small(features[:4], np.arange(4))
