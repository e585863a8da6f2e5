"""The gradient forms equal the reference's figures, and autodiff of the losses they come from."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods.contrastive import nt_xent_loss
from gsg_jax.methods.correlation import init_correlation, update_correlation
from gsg_jax.methods.decorrelation import barlow_twins_loss, vicreg_loss
from gsg_jax.methods.unified import FORMS, Pair, check_form, unified_loss
from gsg_jax.similarity import cosine_similarity, normalize
from tests.methods.loops import fresh, loss_and_gradient, outputs_of, unit

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "gradient_forms.npz"
SETTINGS = {"balance": 100.0, "temperature": 0.2, "eigenvalue_floor": 0.3}
THEIR_NAMES = {
    "unigrad": "loss_unigrad",
    "simclr_one_term": "loss_simclr_grad_mm",
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
            memory = update_correlation(memory, t, 0.99)
            positive, negative = FORMS[form][0](Pair(u, t, memory["correlation"], **settings))
            prefix = f"{precision}_{THEIR_NAMES[form]}_step{step + 1}"
            expected = np.stack([vectors[f"{prefix}_grad_z1"], vectors[f"{prefix}_grad_z2"]])
            _close(positive + negative, expected, tolerance)
            if f"{prefix}_F" in vectors:
                _close(memory["correlation"], vectors[f"{prefix}_F"], tolerance)


def _close(ours, theirs, tolerance):
    # Entries near zero are differences of large ones: their size is what rounding goes by.
    atol = tolerance * np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("collapse", [1.0, 1e-2])
@pytest.mark.parametrize("seed", [0, 1])
class TestAutodiffOfTheLossIsTheForm:
    """Float64, relative 1e-9, on random and on nearly collapsed inputs."""

    def compare(self, form, loss, p, z, balance=3.0, floor=0.3, **options):
        _, expected, _ = loss_and_gradient(loss, p, z, **options)
        memory = {"correlation": self.correlation(p if z is None else z), "is_set": np.array(True)}
        settings = {"balance": balance, "temperature": 0.2, "eigenvalue_floor": floor}
        _, gradient, _ = loss_and_gradient(
            unified_loss,
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

    @pytest.mark.parametrize("form", ["moco", "simclr_one_term"])
    def test_contrastive_against_the_target_branch(self, seed, collapse, form):
        def loss(outputs, memory, key):
            u = normalize(outputs.p)
            bank = normalize(outputs.z_target)
            logits = u.reshape(-1, u.shape[-1]) @ bank.reshape(-1, u.shape[-1]).T / 0.2
            positive = jnp.sum(u * bank[::-1], axis=-1) / 0.2
            value = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive.reshape(-1))
            return value, memory, {}

        self.compare(form, loss, *fresh(seed, collapse=collapse))

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
def test_every_form_is_finite_and_moves_siblings_together(form):
    p, z = fresh(5, num_images=9, width=4)
    memory = {"correlation": np.eye(4) / 4, "is_set": np.array(True)}
    value, gradient, (_, metrics) = loss_and_gradient(
        unified_loss, p, z, memory, form=form, correlation_decay=0.9, **SETTINGS | {"balance": 0.0}
    )
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    cosine = np.mean(np.sum(unit(p) * unit(z[::-1]), axis=-1))
    if not form.startswith(("vicreg", "barlow_twins")) or form.endswith("l2"):
        np.testing.assert_allclose(metrics["positive_similarity"], cosine, rtol=1e-10)
    assert metrics["positive_gradient"] > 0


def test_directpred_keeps_each_row_orthogonal_to_its_gradient():
    p, z = fresh(6)
    with jax.enable_x64(True):
        pair = Pair(jnp.asarray(unit(p)), jnp.asarray(unit(z)), jnp.eye(5) / 5, **SETTINGS)
        for form in ("directpred", "directpred_no_predictor"):
            gradient = sum(FORMS[form][0](pair))
            np.testing.assert_allclose(np.sum(gradient * unit(p), axis=-1), 0, atol=1e-14)
        constant = sum(FORMS["directpred_constant"][0](pair))
        assert np.abs(np.sum(constant * unit(p), axis=-1)).max() > 1e-3


def test_barlow_twins_with_the_identity_lacks_only_the_diagonals_pull():
    p, _ = fresh(7)
    with jax.enable_x64(True):
        u = jnp.asarray((p - p.mean(1, keepdims=True)) / p.std(1, keepdims=True))
        pair = Pair(u, u, jnp.eye(5), 0.3, 0.2, 0.3)
        full, identity = FORMS["barlow_twins"][0](pair), FORMS["barlow_twins_identity"][0](pair)
        np.testing.assert_allclose(full[1], identity[1])
        diagonal = np.mean(np.asarray(u[0] * u[1]), axis=0)
        expected = 2 / 7 * (1 - 0.3) * diagonal * np.asarray(u[::-1])
        np.testing.assert_allclose(full[0] - identity[0], expected, rtol=1e-10)


def test_an_unknown_form_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"method.form is 'unigrd': take one of moco, simclr"):
        check_form(num_views=2, batch_size=8, form="unigrd", **SETTINGS)


def test_no_gradient_enters_the_targets():
    p, z = (jnp.asarray(x, jnp.float32) for x in fresh(8))
    memory = init_correlation(jax.random.key(0), width=5)

    def value(z):
        settings = SETTINGS | {"correlation_decay": 0.9}
        return unified_loss(
            outputs_of(p, z), memory, jax.random.key(0), form="unigrad", **settings
        )[0]

    assert not np.asarray(jax.grad(value)(z)).any()
