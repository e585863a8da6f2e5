"""METHODS: every method of the framework, a row each."""

from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.base import PREDICTORS, TARGETS, Method, Outputs
from gsg_jax.methods.clustering import check_dino, dino_loss, init_centre, twist_loss
from gsg_jax.methods.contrastive import (
    check_queue,
    check_two_views,
    init_queue,
    moco_loss,
    nt_xent_loss,
)
from gsg_jax.methods.correlation import init_correlation
from gsg_jax.methods.decorrelation import barlow_twins_loss, vicreg_loss
from gsg_jax.methods.directpred import directpred_loss, init_predictor
from gsg_jax.methods.guided import check_pairing, guided_loss
from gsg_jax.methods.unified import check_form, unified_loss

METHODS = {
    "simsiam": Method(asymmetric_loss, target="online", predictor="mlp"),
    "byol": Method(asymmetric_loss, target="ema", predictor="mlp"),
    "simsiam_gsg": Method(
        guided_loss, target="online", predictor="mlp", options=("pairing",), check=check_pairing
    ),
    "byol_gsg": Method(
        guided_loss, target="ema", predictor="mlp", options=("pairing",), check=check_pairing
    ),
    "simclr": Method(
        nt_xent_loss,
        target="online",
        predictor="none",
        options=("temperature",),
        check=check_two_views,
        stop_gradient=False,
    ),
    "moco_v2": Method(
        moco_loss,
        target="ema",
        predictor="none",
        options=("temperature", "queue_size"),
        check=check_queue,
        init_memory=init_queue,
    ),
    "barlow_twins": Method(
        barlow_twins_loss,
        target="online",
        predictor="none",
        options=("off_diagonal_weight",),
        check=check_two_views,
        stop_gradient=False,
    ),
    "vicreg": Method(
        vicreg_loss,
        target="online",
        predictor="none",
        options=("invariance_weight", "variance_weight", "covariance_weight"),
        check=check_two_views,
        stop_gradient=False,
    ),
    "directpred": Method(
        directpred_loss,
        target="ema",
        predictor="none",
        options=("correlation_decay", "eigenvalue_floor", "predictor_every_steps"),
        init_memory=init_predictor,
    ),
    "unigrad": Method(
        unified_loss,
        target="ema",
        predictor="none",
        options=("form", "balance", "temperature", "eigenvalue_floor", "correlation_decay"),
        check=check_form,
        init_memory=init_correlation,
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

__all__ = ["METHODS", "PREDICTORS", "TARGETS", "Method", "Outputs"]
