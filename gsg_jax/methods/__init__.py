"""METHODS: one row for every method of the framework."""

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
from gsg_jax.methods.decorrelation import barlow_twins_loss, vicreg_loss
from gsg_jax.methods.directpred import directpred_loss, init_predictor
from gsg_jax.methods.forms import FORMS
from gsg_jax.methods.guided import (
    DISTANCES,
    GUIDES,
    VIEWS_OF_PAIRING,
    check_pairing,
    guided_loss,
    source_views,
)
from gsg_jax.methods.lejepa import lejepa_loss
from gsg_jax.methods.method import EXTRAS, PREDICTORS, SOURCES, TARGETS, Key, Method, Outputs
from gsg_jax.methods.simdino import simdino_loss
from gsg_jax.methods.unified import check_form, own_form_values, surrogate_loss
from gsg_jax.methods.visreg import visreg_loss

# Options shared by several methods.
_TEMPERATURE = {
    "temperature": Key(float, "of the softmax over similarities or classes", (0.01, 10))
}
_CORRELATION = {
    "correlation_decay": Key(float, "share of the running correlation that is kept", (0, 1)),
    "eigenvalue_floor": Key(float, "added to the spectrum, relative to its largest", (0, 10)),
}

_SKETCH = {
    "regularizer_weight": Key(
        float, "lambda, of all but the invariance, which has the rest", (0, 1)
    ),
    "num_directions": Key(int, "random directions a step, compared with a Gaussian", (1, 65536)),
}
_SHARED = {"target": "online", "predictor": "none", "stop_gradient": False}
_LINEAR = ("local_views", "cutmix", "guided")  # losses that are linear in a target row
_PAIRING = {
    "pairing": Key(
        str, "how guided stop-gradient draws each image's reference", tuple(VIEWS_OF_PAIRING)
    ),
    "guide": Key("closest", "view pair that are the sources; another one is an ablation", GUIDES),
    "distances": Key("raw", "of projections that guide; normalised: an ablation", DISTANCES),
}
_GUIDED = {"predictor": "mlp", "options": _PAIRING, "extras": ("local_views", "cutmix")}
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
        options=_TEMPERATURE,
        check=check_two_views,
        stop_gradient=False,
        extras=("ema_positive",),
    ),
    "moco_v2": Method(
        moco_loss,
        target="ema",
        predictor="none",
        options=_TEMPERATURE
        | {"queue_size": Key(int, "earlier targets that are kept as negatives", (1, 1e8))},
        check=check_queue,
        init_memory=init_queue,
        extras=("ema_positive",),
    ),
    "barlow_twins": Method(
        barlow_twins_loss,
        target="online",
        predictor="none",
        options={"off_diagonal_weight": Key(float, "of the off-diagonal correlations", (0, 1e3))},
        check=check_two_views,
        stop_gradient=False,
        extras=("ema_positive",),
    ),
    "vicreg": Method(
        vicreg_loss,
        target="online",
        predictor="none",
        options={
            "invariance_weight": Key(float, "of the distance between views", (0, 1e4)),
            "variance_weight": Key(float, "of the variance term", (0, 1e4)),
            "covariance_weight": Key(float, "of the covariance term", (0, 1e4)),
        },
        check=check_two_views,
        stop_gradient=False,
        extras=("ema_positive",),
    ),
    "directpred": Method(
        directpred_loss,
        target="ema",
        predictor="none",
        options=_CORRELATION
        | {"predictor_every_steps": Key(int, "steps between two closed-form predictors", (1, 1e6))},
        init_memory=init_predictor,
        extras=EXTRAS,
    ),
    "unigrad": Method(
        surrogate_loss,
        target="ema",
        predictor="none",
        options=_TEMPERATURE
        | _CORRELATION
        | {
            "loss_scale": Key(float, "factor of the gradient; 0: the form's own", (0, 1e3)),
            "form": Key(str, "the gradient of the family that UniGrad takes", tuple(FORMS)),
            "balance": Key(float, "weight of the negative gradient; 0: the form's own", (0, 1e6)),
        },
        check=check_form,
        init_memory=init_correlation,
        extras=EXTRAS,
        own_values=own_form_values,
    ),
    "dino": Method(
        dino_loss,
        target="ema",
        predictor="none",
        options=_TEMPERATURE
        | {
            "target_temperature": Key(float, "of the target's softmax", (0.01, 10)),
            "first_target_temperature": Key(float, "the same at step 0", (0.01, 10)),
            "temperature_warmup_steps": Key(int, "steps from the first to the last", (0, 1e9)),
            "centre_momentum": Key(float, "share of the running centre that is kept", (0, 1)),
        },
        check=check_dino,
        init_memory=init_centre,
        extras=_LINEAR,
    ),
    "twist": Method(
        twist_loss,
        target="online",
        predictor="none",
        options={
            "sharpness_weight": Key(float, "of the entropy of each image's classes", (0, 1e3)),
            "diversity_weight": Key(float, "of the entropy of the mean over a batch", (0, 1e3)),
        },
        check=check_two_views,
        stop_gradient=False,
    ),
    "lejepa": Method(lejepa_loss, options=_SKETCH, extras=("local_views",), **_SHARED),
    "visreg": Method(visreg_loss, options=_SKETCH, extras=("local_views",), **_SHARED),
    "simdino": Method(
        simdino_loss,
        target="ema",
        predictor="none",
        options={
            "coding_epsilon": Key(float, "squared error that the coding rate allows", (1e-4, 1e3))
        },
        extras=_LINEAR,
    ),
}

__all__ = ["METHODS", "PREDICTORS", "SOURCES", "TARGETS", "Key", "Method", "Outputs"]
