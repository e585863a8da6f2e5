"""METHODS: every method of the framework, a row each."""

from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.clustering import check_dino, dino_loss, init_centre, twist_loss
from gsg_jax.methods.contrastive import (
    check_queue,
    check_two_views,
    init_queue,
    moco_loss,
    nt_xent_loss,
)
from gsg_jax.methods.correlation import init_correlation
from gsg_jax.methods.decorrelation import (
    barlow_twins_loss,
    own_barlow_scale,
    own_vicreg_scale,
    vicreg_loss,
)
from gsg_jax.methods.directpred import directpred_loss, init_predictor
from gsg_jax.methods.guided import check_pairing, guided_loss, source_views
from gsg_jax.methods.method import EXTRAS, PREDICTORS, SOURCES, TARGETS, Method, Outputs
from gsg_jax.methods.unified import check_form, own_form_values, surrogate_loss

_LINEAR = ("local_views", "cutmix")  # losses that are linear in a target row
_GUIDED = {"predictor": "mlp", "options": ("pairing",), "extras": _LINEAR}
_GUIDED |= {"check": check_pairing, "select": source_views}

METHODS = {
    "simsiam": Method(asymmetric_loss, target="online", predictor="mlp", extras=_LINEAR),
    "byol": Method(asymmetric_loss, target="ema", predictor="mlp", extras=_LINEAR),
    "simsiam_gsg": Method(guided_loss, target="online", **_GUIDED),
    "byol_gsg": Method(guided_loss, target="ema", **_GUIDED),
    "simclr": Method(
        nt_xent_loss,
        target="online",
        predictor="none",
        options=("temperature",),
        check=check_two_views,
        stop_gradient=False,
        extras=("ema_positive",),
    ),
    "moco_v2": Method(
        moco_loss,
        target="ema",
        predictor="none",
        options=("temperature", "queue_size"),
        check=check_queue,
        init_memory=init_queue,
        extras=("ema_positive",),
    ),
    "barlow_twins": Method(
        barlow_twins_loss,
        target="online",
        predictor="none",
        options=("off_diagonal_weight", "loss_scale"),
        check=check_two_views,
        stop_gradient=False,
        extras=("ema_positive",),
        own_values=own_barlow_scale,
    ),
    "vicreg": Method(
        vicreg_loss,
        target="online",
        predictor="none",
        options=("invariance_weight", "variance_weight", "covariance_weight", "loss_scale"),
        check=check_two_views,
        stop_gradient=False,
        extras=("ema_positive",),
        own_values=own_vicreg_scale,
    ),
    "directpred": Method(
        directpred_loss,
        target="ema",
        predictor="none",
        options=("correlation_decay", "eigenvalue_floor", "predictor_every_steps"),
        init_memory=init_predictor,
        extras=EXTRAS,
    ),
    "unigrad": Method(
        surrogate_loss,
        target="ema",
        predictor="none",
        options=(
            "form",
            "balance",
            "loss_scale",
            "temperature",
            "eigenvalue_floor",
            "correlation_decay",
        ),
        check=check_form,
        init_memory=init_correlation,
        extras=EXTRAS,
        own_values=own_form_values,
    ),
    "dino": Method(
        dino_loss,
        target="ema",
        predictor="none",
        options=(
            "temperature",
            "target_temperature",
            "first_target_temperature",
            "temperature_warmup_steps",
            "centre_momentum",
        ),
        check=check_dino,
        init_memory=init_centre,
        extras=_LINEAR,
    ),
    "twist": Method(
        twist_loss,
        target="online",
        predictor="none",
        options=("sharpness_weight", "diversity_weight"),
        check=check_two_views,
        stop_gradient=False,
    ),
}

__all__ = ["METHODS", "PREDICTORS", "SOURCES", "TARGETS", "Method", "Outputs"]
