"""FORMS: one row for each gradient of the family, in one notation (UniGrad).

Notation, for a view u_1 of N images: u_2 is its positive, its sibling in the target branch; v runs
over the target branch's rows of both views, F is their running correlation matrix. Rows have unit
length, except for Barlow Twins, whose columns are standardised, and VICReg, which takes them as
they are. A form returns the two parts of the gradient with respect to u_1 and, in the other order,
to u_2; the surrogate loss sum(stop_gradient(g) u) has this gradient.

1/(2 N) is for N images of 2 views; with local views the mean is over all V N views. Forms whose
negative part does not name the sibling take any positive: for local views, the mean of both global
targets; for CutMix, both images' targets by their shares.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gsg_jax.methods.decorrelation import STD_EPSILON, standardize
from gsg_jax.methods.similarity import NORM_FLOOR, norm, normalize


class Pair(NamedTuple):
    """Input of a form: rows of both branches, and the settings.

    Attributes:
      u: online rows, [V, N, D], V = 2 without local views.
      positive: the row that each u is pulled toward, u_2 for u_1, [V, N, D].
      bank: rows of the target branch that negatives are made of, [2, N, D].
      correlation: F after this step's update, [D, D].
      balance: lambda, the weight of the negative part.
      temperature: tau of the contrastive forms.
      eigenvalue_floor: epsilon of the DirectPred forms.
    """

    u: jax.Array
    positive: jax.Array
    bank: jax.Array
    correlation: jax.Array
    balance: float
    temperature: float
    eigenvalue_floor: float


Gradients = tuple[jax.Array, jax.Array]


# --- Contrastive -------------------------------------------------------------------------------


def moco(pair: Pair) -> Gradients:
    """G = 1/(2 N tau) (-u_2 + sum_v s_v v), s the softmax of u_1 . v / tau over all targets."""
    return _info_nce(pair, leaves_out_itself=False)


def simclr_one_term(pair: Pair) -> Gradients:
    """SimCLR's first term alone (u_1 as a source): MoCo's gradient without u_1's own row."""
    return _info_nce(pair, leaves_out_itself=True)


def _info_nce(pair: Pair, *, leaves_out_itself: bool) -> Gradients:
    rows, bank = _rows(pair.u), _rows(pair.bank)
    logits = _dot(rows, bank.T) / pair.temperature
    if leaves_out_itself:
        logits = jnp.where(jnp.eye(len(rows), len(bank), dtype=bool), -jnp.inf, logits)
    negative = _dot(jax.nn.softmax(logits, axis=1), bank).reshape(pair.u.shape)
    scale = _mean_over_views(pair) / pair.temperature
    return -scale * pair.positive, scale * negative


def simclr(pair: Pair) -> Gradients:
    """SimCLR with weight sharing, both terms: u_1's gradients as a source and as a target.

    g = 1/(2 N tau) (-2 u_2 + sum_v s_v v + sum_v t_v v): s_v is u_1's softmax over the other rows,
    t_v the share that row v's softmax gives to u_1.
    """
    rows = _rows(pair.u)
    logits = _dot(rows, rows.T) / pair.temperature
    shares = jax.nn.softmax(jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, logits), axis=1)
    negative = _dot(shares + shares.T, rows).reshape(pair.u.shape)
    scale = _mean_over_views(pair) / pair.temperature
    return -2 * scale * pair.positive, scale * negative


# --- Asymmetric --------------------------------------------------------------------------------


def directpred(pair: Pair) -> Gradients:
    """G = 1/(2 N |W u_1|) (-W u_2 + lambda_1 (F + epsilon^2 s_max I) u_1).

    lambda_1 = u_1' W u_2 / u_1' (F + epsilon^2 s_max I) u_1 makes g and u_1 orthogonal.
    """
    return _directpred(pair, dynamic=True, keeps_predictor=True)


def directpred_no_predictor(pair: Pair) -> Gradients:
    """DirectPred with the positive part simplified: g = 1/(2 N) (-u_2 + lambda_1 (F + ..) u_1)."""
    return _directpred(pair, dynamic=True, keeps_predictor=False)


def directpred_constant(pair: Pair) -> Gradients:
    """DirectPred simplified twice: g = 1/(2 N) (-u_2 + balance (F + epsilon^2 s_max I) u_1)."""
    return _directpred(pair, dynamic=False, keeps_predictor=False)


def _directpred(pair: Pair, *, dynamic: bool, keeps_predictor: bool) -> Gradients:
    values, vectors = jnp.linalg.eigh(pair.correlation)
    values = jnp.maximum(values, 0)
    roots = jnp.sqrt(values) + pair.eigenvalue_floor * jnp.sqrt(jnp.max(values))
    shifted = values + pair.eigenvalue_floor**2 * jnp.max(values)
    predicted = _dot(_dot(pair.u, vectors) * roots[None, None], vectors.T)  # W u
    positive = pair.positive
    if keeps_predictor:
        positive = _dot(_dot(positive, vectors) * roots[None, None], vectors.T)  # W u_2
    negative = _dot(
        _dot(pair.u, vectors) * shifted[None, None], vectors.T
    )  # (F + epsilon^2 s_max I) u_1
    balance = pair.balance
    if dynamic:
        along = jnp.sum(pair.u * positive, axis=-1, keepdims=True)
        repelled = jnp.sum(pair.u * negative, axis=-1, keepdims=True)  # at least 0
        balance = along / jnp.maximum(repelled, NORM_FLOOR)
    scale = _mean_over_views(pair)
    if keeps_predictor:
        scale = scale / jnp.maximum(norm(predicted), NORM_FLOOR)[..., None]
    return -scale * positive, scale * balance * negative


# --- Decorrelating -----------------------------------------------------------------------------


def barlow_twins(pair: Pair) -> Gradients:
    """G = 2/N (-A u_2 + lambda sum_v (u_2 . v_2) v_1 / N), A = I - (1 - lambda) diag(C).

    The rows' columns are standardised over the batch, C = mean_v v_1 v_2'.
    """
    num_images = pair.u.shape[1]
    diagonal = jnp.mean(pair.u * pair.positive, axis=1, keepdims=True)  # of C, in each order
    positive = (1 - (1 - pair.balance) * diagonal) * pair.positive
    return -2 / num_images * positive, 2 / num_images * pair.balance * _decorrelating(pair)


def barlow_twins_identity(pair: Pair) -> Gradients:
    """Barlow Twins with A = I: g = 2/N (-u_2 + lambda sum_v (u_2 . v_2) v_1 / N)."""
    num_images = pair.u.shape[1]
    negative = 2 / num_images * pair.balance * _decorrelating(pair)
    return -2 / num_images * pair.positive, negative


def barlow_twins_l2(pair: Pair) -> Gradients:
    """Barlow Twins on unit rows: g = 1/N (-u_2 + lambda sum_v (u_2 . v_2) v_1 / N)."""
    num_images = pair.u.shape[1]
    return -pair.positive / num_images, pair.balance * _decorrelating(pair) / num_images


def vicreg(pair: Pair) -> Gradients:
    """G of l = 1/N sum |u_1 - u_2|^2 + lambda sum_{i != j} Cov_ij^2 + sum_i max(0, 1 - std_i).

    g = 2/N (u_1 - u_2) + 4 lambda/(N - 1) (Cov - diag Cov) u_1 - [std < 1] u_1 / ((N - 1) std).
    Here u_1 in the second and third term is centred over the batch.
    """
    num_images = pair.u.shape[1]
    centred = pair.u - jnp.mean(pair.u, axis=1, keepdims=True)
    covariance = jnp.einsum("vni,vnj->vij", centred, centred, precision=jax.lax.Precision.HIGHEST)
    covariance = covariance / (num_images - 1)
    variance = jnp.diagonal(covariance, axis1=1, axis2=2)[:, None]  # [2, 1, D]
    std = jnp.sqrt(variance + STD_EPSILON)
    decorrelating = jnp.matmul(centred, covariance, precision=jax.lax.Precision.HIGHEST)
    decorrelating = 4 * pair.balance / (num_images - 1) * (decorrelating - variance * centred)
    spreading = jnp.where(std < 1, centred / std, 0) / (num_images - 1)
    positive = -2 / num_images * pair.positive
    return positive, 2 / num_images * pair.u + decorrelating - spreading


def vicreg_l2(pair: Pair) -> Gradients:
    """VICReg on unit rows: g = 1/N (-u_2 + lambda sum_v (u_1 . v_1) v_1 / N)."""
    num_images = pair.u.shape[1]
    gram = jnp.matmul(pair.u, pair.u.swapaxes(1, 2), precision=jax.lax.Precision.HIGHEST)
    negative = jnp.matmul(gram, pair.u, precision=jax.lax.Precision.HIGHEST) / num_images
    return -pair.positive / num_images, pair.balance * negative / num_images


def _decorrelating(pair: Pair) -> jax.Array:
    """sum_v (u_2 . v_2) v_1 / N for each u_1, in both orders, [2, N, D]."""
    siblings = pair.bank[::-1]
    gram = jnp.matmul(siblings, siblings.swapaxes(1, 2), precision=jax.lax.Precision.HIGHEST)
    product = jnp.matmul(gram, pair.u, precision=jax.lax.Precision.HIGHEST)
    return product / pair.u.shape[1]


# --- The member that is left after all simplifications -------------------------------------------


def unigrad(pair: Pair) -> Gradients:
    """G = 1/(2 N) (-u_2 + lambda F u_1)."""
    scale = _mean_over_views(pair)
    return -scale * pair.positive, scale * pair.balance * _dot(pair.u, pair.correlation)


class Form(NamedTuple):
    """A member of the family.

    Attributes:
      gradients: the two parts of the gradient with respect to u.
      rows_of: makes rows from projections.
      balance: its usual lambda (on unit rows: for 2048 channels); None if the form has none or
        computes its own.
      scale_per_channel: c in the loss scale c / D with which the form learns like a cosine; None
        means a scale of 1.

    Source: Tao et al., CVPR 2022 (arXiv 2112.05141), table 2.
    """

    gradients: Callable[[Pair], Gradients]
    rows_of: Callable[[jax.Array], jax.Array]
    balance: float | None = None
    scale_per_channel: float | None = None


_standardize_views = jax.vmap(standardize)

FORMS = {
    "moco": Form(moco, normalize),
    "simclr": Form(simclr, normalize),
    "simclr_one_term": Form(simclr_one_term, normalize),
    "directpred": Form(directpred, normalize),
    "directpred_no_predictor": Form(directpred_no_predictor, normalize),
    "directpred_constant": Form(directpred_constant, normalize, balance=100.0),
    "barlow_twins": Form(barlow_twins, _standardize_views, 5e-3, 0.5),
    "barlow_twins_identity": Form(barlow_twins_identity, _standardize_views, 5e-3, 0.5),
    "barlow_twins_l2": Form(barlow_twins_l2, normalize, balance=50.0),
    "vicreg": Form(vicreg, lambda x: x, 4e-5, 0.25),
    "vicreg_l2": Form(vicreg_l2, normalize, balance=25.0),
    "unigrad": Form(unigrad, normalize, balance=100.0),
}
# Forms whose negative part does not name the sibling.
WITH_ANY_POSITIVE = (
    "moco",
    "simclr_one_term",
    "directpred",
    "directpred_no_predictor",
    "directpred_constant",
    "unigrad",
)


def _mean_over_views(pair: Pair) -> float:
    """1 / (V N): 1 / 2N for two views."""
    return 1 / (pair.u.shape[0] * pair.u.shape[1])


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
