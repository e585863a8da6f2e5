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
from gsg_jax.methods.similarity import cosine_to_unit, normalize
from gsg_jax.methods.unified import own_form_values, surrogate_loss
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

    options = {"form": form, "correlation_decay": 0.99, **settings}
    return lambda u: surrogate_loss(outputs_of(u, t), memory, jax.random.key(0), **options)[0]


def _close(ours, theirs, tolerance):
    # Entries near zero are differences of large ones: their size is what rounding goes by.
    atol = tolerance * np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=atol)


def correlation_of(z):
    rows = unit(z).reshape(-1, z.shape[-1])
    return rows.T @ rows / len(rows)


def attraction_of(loss):
    """The attraction of a loss in its value's place."""

    def attraction(*arguments, **options):
        _, memory, metrics = loss(*arguments, **options)
        return metrics["attraction"], memory, {}

    return attraction


def forms_gradient(form, p, z, *, of=surrogate_loss, balance=3.0, floor=0.3):
    """The gradient of a form, whose running correlation is that of its targets."""
    z = p if z is None else z
    memory = {"correlation": correlation_of(z), "is_set": np.array(True)}
    settings = {"balance": balance, "temperature": 0.2, "eigenvalue_floor": floor}
    return loss_and_gradient(of, p, z, memory, form=form, correlation_decay=1.0, **settings)[1]


def moco_of_the_batch(outputs, memory, key):
    """MoCo's loss against all targets of the batch."""
    u, bank = normalize(outputs.p), normalize(outputs.z_target)
    logits = u.reshape(-1, u.shape[-1]) @ bank.reshape(-1, u.shape[-1]).T / 0.2
    positive = jnp.sum(u * bank[::-1], axis=-1) / 0.2
    value = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive.reshape(-1))
    return value, memory, {}


def directpred_by_a_root(outputs, memory, key):
    """Where nothing is added to the eigenvalues the predictor is the root of F itself."""
    values, vectors = jnp.linalg.eigh(memory["correlation"])
    predictor = vectors * jnp.sqrt(jnp.maximum(values, 0))[None] @ vectors.T
    q = normalize(outputs.p) @ predictor
    return -jnp.mean(cosine_to_unit(q, normalize(outputs.z_target[::-1]))), memory, {}


def unigrad_on_unit_rows(outputs, memory, key):
    u, t = normalize(outputs.p), normalize(outputs.z_target)
    repulsion = 3.0 * jnp.einsum("vni,ij,vnj->", u, memory["correlation"], u) / 2
    return (repulsion - jnp.sum(u * t[::-1])) / (2 * u.shape[1]), memory, {}


def vicreg_on_unit_rows(outputs, memory, key):
    u, t = normalize(outputs.p), normalize(outputs.z_target)
    squares = jnp.sum(jnp.square(jnp.einsum("vni,vnj->vij", u, u)))
    images = u.shape[1]
    return 3.0 * squares / (4 * images**2) - jnp.sum(u * t[::-1]) / images, memory, {}


one_term = functools.partial(nt_xent_loss, stop_gradient=True)
VICREG = {"invariance_weight": 5, "variance_weight": 10.0, "covariance_weight": 1.5}
# (form, its loss, whether the branches share their weights, the loss's options, the form's)
LOSSES = [
    ("simclr", nt_xent_loss, True, {"temperature": 0.2}, {}),
    ("barlow_twins", barlow_twins_loss, True, {"off_diagonal_weight": 0.3}, {"balance": 0.3}),
    ("vicreg", vicreg_loss, True, VICREG, {"balance": 0.3}),
    ("simclr_one_term", one_term, False, {"temperature": 0.2}, {}),
    ("moco", moco_of_the_batch, False, {}, {}),
    ("directpred", directpred_by_a_root, False, {}, {"floor": 0.0}),
    ("vicreg_l2", vicreg_on_unit_rows, False, {}, {}),
    ("unigrad", unigrad_on_unit_rows, False, {}, {}),
]


@pytest.mark.parametrize(("seed", "collapse"), [(0, 1.0), (1, 1e-2)])
@pytest.mark.parametrize(("form", "loss", "shared", "options", "settings"), LOSSES)
def test_autodiff_of_a_loss_is_its_form(form, loss, shared, options, settings, seed, collapse):
    """On random and on nearly collapsed inputs."""
    p, z = fresh(seed, collapse=collapse)
    for targets in (p, z) if form == "simclr_one_term" else (None if shared else z,):
        memory = {"correlation": correlation_of(p if targets is None else targets)}
        _, expected, _ = loss_and_gradient(loss, p, targets, memory, **options)
        _close(forms_gradient(form, p, targets, **settings), expected, 1e-9)


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
    attraction = attraction_of(surrogate_loss)
    _, pull, _ = loss_and_gradient(attraction, p, z, memory, form=form, **settings)
    with jax.enable_x64(True):
        rows_of = FORMS[form][1]
        before, after, t = (rows_of(jnp.asarray(x)) for x in (p, p - 1e-3 * pull, z[::-1]))
        assert jnp.mean(jnp.sum(after * t, axis=-1)) > jnp.mean(jnp.sum(before * t, axis=-1))


def directpred_across(outputs, memory, key):
    """The loss takes rows of any length, the form unit ones: what turns a row is compared."""
    options = {"correlation_decay": 0.9, "predictor_every_steps": 1, "eigenvalue_floor": 0.0}
    return directpred_loss(outputs._replace(p=normalize(outputs.p)), memory, key, **options)


QUEUE = {"queue": unit(np.ones((20, 5))), "oldest": np.int32(0)}
RUNNING = {"correlation": np.zeros((5, 5)), "is_set": np.array(False)}
PREDICTOR = {"running": RUNNING, "predictor": np.eye(5), "steps": np.int32(0)}


@pytest.mark.parametrize("collapse", [1.0, 1e-2])
@pytest.mark.parametrize(
    ("form", "loss", "memory", "options", "settings"),
    [
        *((form, loss, None, *rest) for form, loss, shared, *rest in LOSSES if shared),
        ("moco", moco_loss, QUEUE, {"temperature": 0.2, "queue_size": 20}, {}),
        ("directpred", directpred_across, PREDICTOR, {}, {"floor": 0.0}),
    ],
)
def test_the_attraction_of_a_loss_is_the_positive_part_of_its_form(
    form, loss, memory, options, settings, collapse
):
    """The split that the gradient inspector logs is the paper's."""
    p, z = fresh(11, collapse=collapse)
    z = z if memory else None
    _, expected, _ = loss_and_gradient(attraction_of(loss), p, z, memory, **options)
    ours = forms_gradient(form, p, z, of=attraction_of(surrogate_loss), **settings)
    _close(ours, expected, 1e-9)


@pytest.mark.parametrize("form", WITH_ANY_POSITIVE)
def test_local_views_and_patches_change_the_positive_and_nothing_else(form):
    rng = np.random.default_rng(16)
    p, z = rng.normal(size=(5, 7, 4)), rng.normal(size=(2, 7, 4))
    t, partner, share = unit(z), rng.permutation(7), 0.3
    memory = {"correlation": np.eye(4) / 4, "is_set": np.array(True)}
    options = {"form": form, "correlation_decay": 1.0, **SETTINGS}
    for mix in (None, CutMix(partner, share)):
        pulled = np.zeros_like(p)
        for v in range(5):
            for n in range(7):
                own, other = (
                    t[1 - v, m] if v < 2 else (t[0, m] + t[1, m]) / 2 for m in (n, partner[n])
                )
                pulled[v, n] = own if mix is None else (1 - share) * own + share * other
        pair = Pair(unit(p), pulled, t, memory["correlation"], **SETTINGS)
        with jax.enable_x64(True):
            expected = tangential(p, sum(FORMS[form][0](Pair(*map(jnp.asarray, pair)))))
        others = {"mix": mix}
        _, gradient, _ = loss_and_gradient(surrogate_loss, p, z, memory, others=others, **options)
        _close(gradient, expected, 1e-9)


def tangential(p, gradient):
    """The gradient by p of a function whose gradient by p / |p| is given."""
    u, gradient = unit(p), np.asarray(gradient)
    across = gradient - np.sum(gradient * u, axis=-1, keepdims=True) * u
    return across / np.linalg.norm(p, axis=-1, keepdims=True)


def test_negatives_of_the_online_branch_leave_the_positives_to_the_ema_target():
    p, z = fresh(17)
    other = fresh(18)[0]
    memory = {"correlation": np.zeros((5, 5)), "is_set": np.array(False)}
    options = {"form": "unigrad", "correlation_decay": 0.9, **SETTINGS}
    others = {"z_negative": other}
    _, gradient, _ = loss_and_gradient(surrogate_loss, p, z, memory, others=others, **options)
    pushed = 100 * unit(p) @ correlation_of(other)
    _close(gradient, tangential(p, (pushed - unit(z)[::-1]) / 14), 1e-9)


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


def test_a_balance_and_a_scale_of_zero_are_the_forms_own():
    own = {form: own_form_values(width=50, form=form, temperature=0.2) for form in FORMS}
    balances = {form: values["balance"] for form, values in own.items() if values["balance"]}
    on_unit_rows = {"directpred_constant": 100, "barlow_twins_l2": 50}
    on_unit_rows |= {"vicreg_l2": 25, "unigrad": 100}
    assert balances == {
        **{form: balance * 50 / 2048 for form, balance in on_unit_rows.items()},
        **{"barlow_twins": 5e-3, "barlow_twins_identity": 5e-3, "vicreg": 4e-5},
    }
    assert own_form_values(width=2048, form="unigrad")["balance"] == 100
    scales = {form: values["loss_scale"] for form, values in own.items()}
    twins = {"barlow_twins": 0.01, "barlow_twins_identity": 0.01}
    assert {form: scale for form, scale in scales.items() if scale != 1} == {
        **{"vicreg": 0.005, **twins}
    }
