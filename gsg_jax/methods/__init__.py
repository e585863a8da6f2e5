"""METHODS: every method of the framework, a row each."""

from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.base import PREDICTORS, TARGETS, Method, Outputs
from gsg_jax.methods.guided import check_pairing, guided_loss

METHODS = {
    "simsiam": Method(asymmetric_loss, target="online", predictor="mlp"),
    "byol": Method(asymmetric_loss, target="ema", predictor="mlp"),
    "simsiam_gsg": Method(
        guided_loss, target="online", predictor="mlp", options=("pairing",), check=check_pairing
    ),
    "byol_gsg": Method(
        guided_loss, target="ema", predictor="mlp", options=("pairing",), check=check_pairing
    ),
}

__all__ = ["METHODS", "PREDICTORS", "TARGETS", "Method", "Outputs"]
