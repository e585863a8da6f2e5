"""The gradient forms equal the reference's figures, and autodiff of the losses they come from."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods.contrastive import moco_loss, nt_xent_loss
from gsg_jax.methods.correlation import init_correlation, update_correlation
from gsg_jax.methods.decorrelation import barlow_twins_loss, vicreg_loss
from gsg_jax.methods.directpred import directpred_loss
from gsg_jax.methods.forms import FORMS, WITH_ANY_POSITIVE, Pair
from gsg_jax.methods.method import CutMix
from gsg_jax.methods.similarity import cosine_similarity, normalize
from gsg_jax.methods.unified import (
    check_form,
    own_form_values,
    surrogate_loss,
)
from tests.methods.loops import fresh, loss_and_gradient, outputs_of, unit

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "gradient_forms.npz"
SETTINGS = {"balance": 100.0, "temperature": 0.2, "eigenvalue_floor": 0.3}
THEIR_NAMES = {
    "unigrad": "loss_unigrad",
    "moco": "loss_simclr_grad_mm",
    "directpred": "loss_byol_directpred_grad",
    "barlow_twins_l2": "loss_barlow_twins_grad_mm",
}


@pytest.mark.parametrize("form", THEIR_NAMES)
@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_three_steps_equal_the_reference_vectors(form, precision):
    vectors = np.load(REFERENCE)
    dtype, tolerance = (np.float32, 1e-5) if precision == "f32" else (np.float64, 1e-10)
    settings = SETTINGS | {"balance": 50.0 if form == "barlow_twins_l2" else 100.0}
    with jax.enable_x64(precision == "f64"):
        memory = init_correlation(jax.random.key(0), width=32)
        for step in range(3):
            u = jnp.asarray(np.stack([vectors["z1"][step], vectors["z2"][step]]), dtype)
            t = jnp.asarray(np.stack([vectors["z1m"][step], vectors["z2m"][step]]), dtype)
            before = memory
            memory = update_correlation(before, t, 0.99)
            positive, negative = FORMS[form][0](
                Pair(u, t[::-1], t, memory["correlation"], **settings)
            )
            through = jax.grad(surrogate_of(form, t, before, settings))(u)
            prefix = f"{precision}_{THEIR_NAMES[form]}_step{step + 1}"
            expected = np.stack([vectors[f"{prefix}_grad_z1"], vectors[f"{prefix}_grad_z2"]])
            _close(positive + negative, expected, tolerance)
            _close(through, tangential(np.asarray(u), expected), 10 * tolerance)
            if f"{prefix}_F" in vectors:
                _close(memory["correlation"], vectors[f"{prefix}_F"], tolerance)


def surrogate_of(form, t, memory, settings):
    """The whole loss as a function of the online rows, its memory not yet updated."""

    def value(u):
        outputs, key = outputs_of(u, t), jax.random.key(0)
        return surrogate_loss(outputs, memory, key, form=form, correlation_decay=0.99, **settings)[
            0
        ]

    return value


def _close(ours, theirs, tolerance):
    # Entries near zero are differences of large ones: their size is what rounding goes by.
    atol = tolerance * np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=atol)


@pytest.mark.parametrize(("seed", "collapse"), [(0, 1.0), (1, 1e-2)])
class TestAutodiffOfTheLossIsTheForm:
    """Float64, relative 1e-9, on random and on nearly collapsed inputs."""

    def compare(self, form, loss, p, z, balance=3.0, floor=0.3, **options):
        _, expected, _ = loss_and_gradient(loss, p, z, **options)
        memory = {"correlation": self.correlation(p if z is None else z), "is_set": np.array(True)}
        settings = {"balance": balance, "temperature": 0.2, "eigenvalue_floor": floor}
        _, gradient, _ = loss_and_gradient(
            surrogate_loss,
            p,
            p if z is None else z,
            memory,
            form=form,
            correlation_decay=1.0,
            **settings,
        )
        np.testing.assert_allclose(
            gradient, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max()
        )

    def correlation(self, z):
        rows = unit(z).reshape(-1, z.shape[-1])
        return rows.T @ rows / len(rows)

    def test_simclr(self, seed, collapse):
        p, _ = fresh(seed, collapse=collapse)
        self.compare("simclr", nt_xent_loss, p, None, temperature=0.2)

    def test_simclr_without_the_second_term(self, seed, collapse):
        p, z = fresh(seed, collapse=collapse)
        stopped = functools.partial(nt_xent_loss, stop_gradient=True)
        for targets in (p, z):  # a branch that shares its weights, and another
            self.compare("simclr_one_term", stopped, p, targets, temperature=0.2)

    def test_moco_against_all_targets_of_the_batch(self, seed, collapse):
        def loss(outputs, memory, key):
            u = normalize(outputs.p)
            bank = normalize(outputs.z_target)
            logits = u.reshape(-1, u.shape[-1]) @ bank.reshape(-1, u.shape[-1]).T / 0.2
            positive = jnp.sum(u * bank[::-1], axis=-1) / 0.2
            value = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive.reshape(-1))
            return value, memory, {}

        self.compare("moco", loss, *fresh(seed, collapse=collapse))

    def test_directpred(self, seed, collapse):
        p, z = fresh(seed, collapse=collapse)
        values, vectors = np.linalg.eigh(self.correlation(z))
        # Where nothing is added to the eigenvalues the predictor is the root of F itself.
        predictor = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T

        def loss(outputs, memory, key):
            q = normalize(outputs.p) @ predictor
            return -jnp.mean(cosine_similarity(q, outputs.z_target[::-1])), memory, {}

        self.compare("directpred", loss, p, z, floor=0.0)

    def test_barlow_twins(self, seed, collapse):
        p, _ = fresh(seed, collapse=collapse)
        self.compare(
            "barlow_twins", barlow_twins_loss, p, None, balance=0.3, off_diagonal_weight=0.3
        )

    def test_vicreg(self, seed, collapse):
        p, _ = fresh(seed, collapse=collapse)
        width = p.shape[-1]
        weights = {"invariance_weight": width, "variance_weight": 2.0 * width}
        self.compare(
            "vicreg", vicreg_loss, p, None, balance=0.3, covariance_weight=0.3 * width, **weights
        )

    @pytest.mark.parametrize("form", ["vicreg_l2", "unigrad"])
    def test_forms_on_unit_rows(self, seed, collapse, form):
        p, z = fresh(seed, collapse=collapse)
        correlation = self.correlation(z)

        def loss(outputs, memory, key):
            u, t = normalize(outputs.p), normalize(outputs.z_target)
            images = u.shape[1]
            positive = jnp.sum(u * t[::-1])
            if form == "unigrad":
                repulsion = 3.0 * jnp.einsum("vni,ij,vnj->", u, correlation, u) / 2
                return (repulsion - positive) / (2 * images), memory, {}
            squares = jnp.sum(jnp.square(jnp.einsum("vni,vnj->vij", u, u)))
            return 3.0 * squares / (4 * images**2) - positive / images, memory, {}

        self.compare(form, loss, p, z)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_finite_and_pulls_siblings_together(form):
    p, z = fresh(5, num_images=9, width=4)
    memory = {"correlation": np.eye(4) / 4, "is_set": np.array(True)}
    settings = SETTINGS | {"balance": 0.0, "correlation_decay": 0.9}
    value, gradient, (_, metrics) = loss_and_gradient(
        surrogate_loss, p, z, memory, form=form, **settings
    )
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    # The attraction alone, followed for a little, brings each view nearer to its sibling's target.
    (pull,) = gradients_of_attraction(surrogate_loss, p, z, memory, form=form, **settings)
    with jax.enable_x64(True):
        rows_of = FORMS[form][1]
        before, after, t = (rows_of(jnp.asarray(x)) for x in (p, p - 1e-3 * pull, z[::-1]))
        assert jnp.mean(jnp.sum(after * t, axis=-1)) > jnp.mean(jnp.sum(before * t, axis=-1))


def gradients_of_attraction(loss, p, z=None, memory=None, **options):
    """Gradient of a loss's attraction by the online rows, float64."""

    def attraction(*arguments, **options):
        _, memory, metrics = loss(*arguments, **options)
        return metrics["attraction"], memory, {}

    return loss_and_gradient(attraction, p, z, memory, **options)[1:2]


@pytest.mark.parametrize("collapse", [1.0, 1e-2])
class TestTheAttractionOfALossIsThePositivePartOfItsForm:
    """Float64, relative 1e-9: the split that the gradient inspector logs is the paper's."""

    def compare(self, form, loss, p, z, memory=None, balance=3.0, floor=0.3, **options):
        (expected,) = gradients_of_attraction(loss, p, z, memory, **options)
        rows = unit(p if z is None else z).reshape(-1, p.shape[-1])
        running = {"correlation": rows.T @ rows / len(rows), "is_set": np.array(True)}
        settings = {"balance": balance, "temperature": 0.2, "eigenvalue_floor": floor}
        (gradient,) = gradients_of_attraction(
            surrogate_loss,
            p,
            p if z is None else z,
            running,
            form=form,
            correlation_decay=1.0,
            **settings,
        )
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9 * scale)

    def test_simclr(self, collapse):
        self.compare("simclr", nt_xent_loss, fresh(11, collapse=collapse)[0], None, temperature=0.2)

    def test_moco(self, collapse):
        p, z = fresh(12, collapse=collapse)
        memory = {"queue": unit(np.ones((20, 5))), "oldest": np.int32(0)}
        self.compare("moco", moco_loss, p, z, memory, temperature=0.2, queue_size=20)

    def test_directpred(self, collapse):
        p, z = fresh(13, collapse=collapse)
        zeros = {"correlation": np.zeros((5, 5)), "is_set": np.array(False)}
        memory = {"running": zeros, "predictor": np.eye(5), "steps": np.int32(0)}

        def across(outputs, memory, key):
            # The loss takes rows of any length, the form unit ones: what turns a row is compared.
            outputs = outputs._replace(p=normalize(outputs.p))
            options = {"correlation_decay": 0.9, "predictor_every_steps": 1}
            return directpred_loss(outputs, memory, key, eigenvalue_floor=0.0, **options)

        self.compare("directpred", across, p, z, memory, floor=0.0)

    def test_barlow_twins(self, collapse):
        p, _ = fresh(14, collapse=collapse)
        self.compare(
            "barlow_twins", barlow_twins_loss, p, None, balance=0.3, off_diagonal_weight=0.3
        )

    def test_vicreg(self, collapse):
        p, _ = fresh(15, collapse=collapse)
        weights = {"invariance_weight": 5, "variance_weight": 10.0, "covariance_weight": 1.5}
        self.compare("vicreg", vicreg_loss, p, None, balance=0.3, **weights)


@pytest.mark.parametrize("form", WITH_ANY_POSITIVE)
def test_local_views_and_patches_change_the_positive_and_nothing_else(form):
    rng = np.random.default_rng(16)
    p, z = rng.normal(size=(5, 7, 4)), rng.normal(size=(2, 7, 4))
    t, partner, share = unit(z), rng.permutation(7), 0.3
    memory = {"correlation": np.eye(4) / 4, "is_set": np.array(True)}
    with jax.enable_x64(True):

        def value(p, mix):
            outputs = outputs_of(p, jnp.asarray(z))._replace(mix=mix)
            arguments = ({k: jnp.asarray(v) for k, v in memory.items()}, jax.random.key(0))
            return surrogate_loss(
                outputs, *arguments, form=form, correlation_decay=1.0, **SETTINGS
            )[0]

        for mix in (None, CutMix(jnp.asarray(partner), jnp.asarray(share))):
            pulled = np.zeros_like(p)
            for v in range(5):
                for n in range(7):
                    own, other = (
                        t[1 - v, m] if v < 2 else (t[0, m] + t[1, m]) / 2 for m in (n, partner[n])
                    )
                    pulled[v, n] = own if mix is None else (1 - share) * own + share * other
            pair = Pair(unit(p), pulled, t, memory["correlation"], **SETTINGS)
            expected = tangential(p, sum(FORMS[form][0](Pair(*map(jnp.asarray, pair)))))
            scale = np.abs(expected).max()
            gradient = jax.grad(value)(jnp.asarray(p), mix)
            np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9 * scale)


def tangential(p, gradient):
    """The gradient by p of a function whose gradient by p / |p| is given."""
    u, gradient = unit(p), np.asarray(gradient)
    across = gradient - np.sum(gradient * u, axis=-1, keepdims=True) * u
    return across / np.linalg.norm(p, axis=-1, keepdims=True)


def test_negatives_of_the_online_branch_leave_the_positives_to_the_ema_target():
    p, z = fresh(17)
    other = fresh(18)[0]
    memory = {"correlation": np.zeros((5, 5)), "is_set": np.array(False)}
    with jax.enable_x64(True):

        def value(p):
            outputs = outputs_of(p, jnp.asarray(z))._replace(z_negative=jnp.asarray(other))
            arguments = ({k: jnp.asarray(v) for k, v in memory.items()}, jax.random.key(0))
            return surrogate_loss(
                outputs, *arguments, form="unigrad", correlation_decay=0.9, **SETTINGS
            )[0]

        rows = unit(other).reshape(-1, 5)
        pushed = 100 * unit(p) @ (rows.T @ rows / len(rows))
        expected = tangential(p, (pushed - unit(z)[::-1]) / 14)
        gradient = jax.grad(value)(jnp.asarray(p))
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("dynamic", [True, False])
def test_simplified_directpred_by_a_loop(dynamic):
    p, z = fresh(19)
    rng = np.random.default_rng(20)
    root = rng.normal(size=(5, 5))
    correlation = root @ root.T / 40
    largest = np.linalg.eigvalsh(correlation).max()
    shifted = correlation + 0.3**2 * largest * np.eye(5)
    expected = np.zeros((2, 7, 5))
    for v in range(2):
        for n in range(7):
            u, t = unit(p)[v, n], unit(z)[1 - v, n]
            balance = (u @ t) / (u @ shifted @ u) if dynamic else 100.0
            expected[v, n] = (-t + balance * shifted @ u) / 14
    form = "directpred_no_predictor" if dynamic else "directpred_constant"
    with jax.enable_x64(True):
        u, t = jnp.asarray(unit(p)), jnp.asarray(unit(z))
        pair = Pair(u, t[::-1], t, jnp.asarray(correlation), **SETTINGS)
        np.testing.assert_allclose(sum(FORMS[form].gradients(pair)), expected, rtol=1e-9)


def test_directpred_keeps_each_row_orthogonal_to_its_gradient():
    p, z = fresh(6)
    with jax.enable_x64(True):
        u, t = jnp.asarray(unit(p)), jnp.asarray(unit(z))
        pair = Pair(u, t[::-1], t, jnp.eye(5) / 5, **SETTINGS)
        for form in ("directpred", "directpred_no_predictor"):
            gradient = sum(FORMS[form][0](pair))
            np.testing.assert_allclose(np.sum(gradient * unit(p), axis=-1), 0, atol=1e-14)
        constant = sum(FORMS["directpred_constant"][0](pair))
        assert np.abs(np.sum(constant * unit(p), axis=-1)).max() > 1e-3


def test_barlow_twins_with_the_identity_lacks_only_the_diagonals_pull():
    p, _ = fresh(7)
    with jax.enable_x64(True):
        u = jnp.asarray((p - p.mean(1, keepdims=True)) / p.std(1, keepdims=True))
        pair = Pair(u, u[::-1], u, jnp.eye(5), 0.3, 0.2, 0.3)
        full, identity = FORMS["barlow_twins"][0](pair), FORMS["barlow_twins_identity"][0](pair)
        np.testing.assert_allclose(full[1], identity[1])
        diagonal = np.mean(np.asarray(u[0] * u[1]), axis=0)
        expected = 2 / 7 * (1 - 0.3) * diagonal * np.asarray(u[::-1])
        np.testing.assert_allclose(full[0] - identity[0], expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"form": "unigrd"}, r"method.form is 'unigrd': take one of moco, simclr"),
        ({"stop_gradient": False}, "stop_gradient is False.*leave it True"),
        ({"form": "simclr"}, "method.target is ema.*method.target=online"),
        ({"form": "moco", "target": "online"}, "method.target is online.*simclr_one_term"),
        ({"form": "directpred", "balance": 7.0}, "balance is 7.0.*has none to set: leave it 0"),
        ({"form": "vicreg_l2", "has_local_views": True}, "views.num_local=0.*unigrad"),
        ({"form": "barlow_twins", "has_cutmix": True}, "cutmix_probability=0.*unigrad"),
        ({"num_views": 4}, "num_views is 4.*num_views=2"),
    ],
)
def test_what_has_no_definition_is_answered_with_what_has_one(choices, words):
    fits = {
        "form": "unigrad",
        "num_views": 2,
        "batch_size": 8,
        "target": "ema",
        "stop_gradient": True,
        "has_local_views": False,
        "has_cutmix": False,
        **SETTINGS | {"balance": 0.0},
    }
    check_form(**fits)
    check_form(**fits | {"form": "simclr", "target": "online"})
    check_form(**fits | {"has_local_views": True})
    with pytest.raises(ValueError, match=words):
        check_form(**fits | choices)


def test_a_balance_and_a_scale_of_zero_are_the_forms_own():
    own = {form: own_form_values(width=50, form=form, temperature=0.2) for form in FORMS}
    balances = {form: values["balance"] for form, values in own.items() if values["balance"]}
    assert balances == {
        "directpred_constant": 100,
        "barlow_twins": 5e-3,
        "barlow_twins_identity": 5e-3,
        "barlow_twins_l2": 50,
        "vicreg": 4e-5,
        "vicreg_l2": 25,
        "unigrad": 100,
    }
    scales = {form: values["loss_scale"] for form, values in own.items()}
    assert {form for form, scale in scales.items() if scale != 1} == {
        "barlow_twins",
        "barlow_twins_identity",
        "vicreg",
    }
    assert scales["barlow_twins"] == 0.01 and scales["vicreg"] == 0.005
