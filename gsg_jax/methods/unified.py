"""UniGrad: one loss for the whole family, positive part + balance x negative part of a gradient."""

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.contrastive import check_two_views
from gsg_jax.methods.correlation import update_correlation
from gsg_jax.methods.forms import FORMS, WITH_ANY_POSITIVE, Pair
from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.positives import positives
from gsg_jax.methods.similarity import normalize

PAPER_WIDTH = 2048  # channels of the projections for which UniGrad's authors give lambda


def surrogate_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    form: str,
    balance: float,
    temperature: float,
    eigenvalue_floor: float,
    correlation_decay: float,
    loss_scale: float = 1.0,
    stop_gradient: bool = True,
) -> tuple[jax.Array, Memory, Metrics]:
    """A loss whose gradient is that of a form, and whose value means nothing.

    Args:
      outputs: online predictions p [V, B, D], target projections z_target (positives) and
        negatives (bank and correlation), [2, B, D].
      memory: the running correlation matrix of unit rows of whole global views.
      key: unused; nothing is random.
      form: one of FORMS.
      balance: lambda, the weight of the negative part.
      temperature: tau of the contrastive forms.
      eigenvalue_floor: epsilon of the DirectPred forms.
      correlation_decay: rho of the running correlation.
      loss_scale: multiplies the gradient.
      stop_gradient: must be True; the given gradient never enters the target.

    Returns:
      (loss, memory, metrics): only the loss's gradient counts. Nothing else is logged.

    Source: Tao et al., CVPR 2022 (arXiv 2112.05141), table 2 and eq. 16.
    """
    del key, stop_gradient
    chex.assert_equal_shape([outputs.p[0], outputs.z_target[0]])
    chex.assert_axis_dimension(outputs.z_target, 0, 2)
    z_target, negatives = jax.lax.stop_gradient((outputs.z_target, outputs.negatives))
    memory = update_correlation(memory, normalize(negatives), correlation_decay)
    gradients, rows_of, *_ = FORMS[form]
    u = rows_of(outputs.p)
    pair = Pair(
        u=jax.lax.stop_gradient(u),
        positive=positives(rows_of(z_target), u.shape[0], outputs.mix, outputs.picks),
        bank=rows_of(negatives),
        correlation=memory["correlation"],
        balance=balance,
        temperature=temperature,
        eigenvalue_floor=eigenvalue_floor,
    )
    positive, negative = jax.lax.stop_gradient(gradients(pair))
    attraction = loss_scale * jnp.sum(positive * u)
    repulsion = loss_scale * jnp.sum(negative * u)
    return attraction + repulsion, memory, {"attraction": attraction}


def own_form_values(*, width: int, form: str, **options) -> dict[str, float]:
    """The form's own balance and loss_scale, which a 0 in the config stands for."""
    del options
    scale, balance = FORMS[form].scale_per_channel, FORMS[form].balance or 0.0
    if FORMS[form].rows_of is normalize:
        # The correlations of unit rows sum to 1: with fewer channels each is larger.
        balance *= width / PAPER_WIDTH
    return {
        "balance": balance,
        "loss_scale": 1.0 if scale is None else scale / width,
    }


def check_form(
    *,
    form: str,
    balance: float,
    target: str,
    stop_gradient: bool,
    has_local_views: bool,
    has_cutmix: bool,
    is_guided: bool,
    **choices,
) -> None:
    """Raises ValueError if a form does not fit the other choices."""
    check_two_views(**choices)
    if not stop_gradient:
        raise ValueError(
            "method.stop_gradient is False, but a given gradient has no other: leave it True; "
            "for weight-sharing branches take method.form=simclr"
        )
    if FORMS[form].balance is None and balance:
        raise ValueError(
            f"method.balance is {balance}, method.form={form} has none to set: leave it 0"
        )
    if form == "moco" and target != "ema":
        raise ValueError(
            f"method.target is {target}, method.form=moco takes its bank from the EMA branch (an "
            "online bank contains the row itself): set --config.method.target=ema, or "
            "--config.method.form=simclr_one_term"
        )
    if form == "simclr" and target != "online":
        raise ValueError(
            f"method.target is {target}, method.form=simclr is the gradient of branches that share "
            "their weights: set --config.method.target=online, or --config.method.form=moco"
        )
    if (has_local_views or has_cutmix or is_guided) and form not in WITH_ANY_POSITIVE:
        raise ValueError(
            f"method.form={form} is not defined for local views, CutMix or guided sources: set "
            "--config.views.num_local=0, --config.views.cutmix_probability=0 and "
            f"--config.method.sources_by=method, or take one of {', '.join(WITH_ANY_POSITIVE)}"
        )
