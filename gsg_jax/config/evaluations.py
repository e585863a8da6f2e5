"""The keys of the evaluations, and the configs that they make.

configs/features.py, knn.py, few_label.py, linear.py, finetune.py, transfer.py, evaluate_all.py and
report.py get theirs from here; a recipe after the config's name changes the numbers.
"""

from typing import Any

from ml_collections import ConfigDict

from gsg_jax.config import keys
from gsg_jax.config.keys import COSINES, CROPS, FEW_LABELS, OPTIMIZERS, Key
from gsg_jax.config.recipes import add_keys, check_recipe
from gsg_jax.config.transfer_sets import SETS

# Recipes of the evaluations, after a colon: numbers for small images, or the papers'.
RECIPES = ("default", "imagenet")

# What is evaluated: a run's newest checkpoint, the run's network as initialised, or the pixels.
ENCODERS = ("pretrained", "untrained", "pixels")
# How the linear evaluation learns: on embeddings by many probes at once or by L-BFGS, or on images.
PROTOCOLS = ("probe", "lbfgs", "images")


def _like(key: str, default: Any) -> Key:
    """A key of pretraining with the same meaning and limits."""
    return keys.KEYS[key]._replace(default=default)


_SHARED = {
    "pretrained": Key("", "the --workdir of a pretraining run"),
    "encoder": Key("pretrained", "untrained: as the run drew it; pixels: none", ENCODERS),
    # "" means as in pretraining.
    "data.name": Key("", "embedded, folder, hf:PATH, a TFDS name or a custom set"),
    "data.dir": Key("", "the TFDS folder or the image folder"),
    "data.train_split": Key("", "the split to learn from"),
    "data.test_split": Key("", "the split to score"),
    "data.follow_links": Key(False, "follow links that lead out of the image folder"),
    "data.crop": Key("", "device: whole images; host: their centre", ("", *CROPS)),
    "views.size": Key(0, "pixels of the centre's side; 0: as in pretraining", (0, 4096)),
    "eval.batch_size": _like("eval.batch_size", 500),
}
# Source: Wu et al., CVPR 2018 (arXiv 1805.01978), section 3.4.
_KNN = {
    "eval.knn_k": Key((20, 200), "neighbours; one score each", (1, 1e9)),
    "eval.knn_temperature": _like("eval.knn_temperature", 0.2),
}
_FEW_LABEL = {
    "few_label.num_images": Key(FEW_LABELS, "labelled images a class; one score each", (1, 1e6)),
    "few_label.num_draws": Key(10, "sets of labelled images that are averaged", (2, 1000)),
    "few_label.c": Key(0.1, "scikit-learn's C; lower is more regularised", (1e-9, 1e9)),
}
_REPORT = {
    "report.max_images": Key(2000, "images on the map, evenly spaced", (1, 20_000)),
    "report.num_queries": Key(12, "rows of the gallery of neighbours", (1, 40)),
    "report.num_neighbours": Key(10, "neighbours in each row", (1, 20)),
    "report.umap": Key(False, "a map by UMAP besides t-SNE and PCA; needs gsg_jax[report]"),
}
_SEED = {"run.seed": _like("run.seed", 0)}
_PROBE = {
    **_SEED,
    "probe.learning_rates": Key((0.03, 0.1, 0.3, 1.0, 3.0), "per 256 images", (1e-9, 1e6)),
    "probe.weight_decays": Key((0.0, 1e-4, 1e-3, 1e-2), "tried with each rate", (0, 1e3)),
    "probe.num_epochs": Key(100, "length of the training", (1, 1e6)),
    "probe.batch_size": Key(256, "embeddings per step", (1, 1e9)),
    "probe.momentum": Key(0.9, "of SGD", (0, 0.99999)),
    "probe.held_out": Key(0.2, "share of the training split to choose by", (0.01, 0.9)),
}
# Source: Kornblith et al., CVPR 2019 (arXiv 1805.08974), appendix A: 45 values.
_LBFGS = {
    **_SEED,
    "lbfgs.l2": Key((1e-6, 1e5), "the least and the greatest tried", (1e-12, 1e12), 2, True),
    "lbfgs.num_l2": Key(45, "values tried", (1, 1000)),
    "lbfgs.held_out": Key(0.2, "share to choose by without a validation split", (0.01, 0.9)),
}
_TRAINING = {
    **_SEED,
    "optim.name": Key("sgd", "the optimizer", OPTIMIZERS),
    "optim.momentum": _like("optim.momentum", 0.9),
    "optim.weight_decay": _like("optim.weight_decay", 0.0),
    "optim.decay_weights_only": _like("optim.decay_weights_only", True),
    "optim.trust_coefficient": _like("optim.trust_coefficient", 1e-3),
    "optim.warmup_epochs": _like("optim.warmup_epochs", 0.0),
    "optim.cosine_per": Key("step", "when the rate falls", COSINES),
    "views.crop_area": _like("views.crop_area", ()),  # () means as in pretraining
    "views.flip_probability": _like("views.flip_probability", 0.5),
    "data.batch_size": _like("data.batch_size", 32),
    "run.num_epochs": _like("run.num_epochs", 30),
}
_LINEAR = _TRAINING | {"optim.learning_rate": _like("optim.learning_rate", 0.1)}
_FINETUNING = _TRAINING | {
    "optim.backbone_learning_rates": Key((0.05, 0.2), "per 256 images", (0, 1e4)),
    "optim.head_learning_rates": Key((0.2, 1.0), "per 256 images", (1e-9, 1e4)),
    "run.held_out": Key(0.2, "share of the training images to choose by", (0.01, 0.9)),
}
# Source: Kornblith et al., CVPR 2019 (arXiv 1805.08974), appendix A.
_TRANSFER = {
    "transfer.sets": Key(tuple(SETS), "the sets to transfer to"),
    "transfer.dir": Key("", "the TFDS folder; '': TFDS's default"),
}
_FEATURES = {"features": Key("", "folder of a features job, read instead of a checkpoint")}
# Further keys of each job.
_JOBS = {
    "features": {
        "splits": Key(("train", "test"), "the splits to embed; TFDS sets: any of their own too"),
    },
    "knn": _FEATURES
    | {"eval.leave_one_out": Key(False, "score the training split by itself, without the test's")}
    | _KNN,
    "few_label": _FEATURES | _FEW_LABEL,
    "linear": _FEATURES
    | {"protocol": Key("probe", "how the classifier learns", PROTOCOLS)}
    | _PROBE
    | _LBFGS
    | _LINEAR,
    "finetune": {"labels": Key(0.1, "share of the labels used, by class", (1e-6, 1))} | _FINETUNING,
    "transfer": _LBFGS | _TRANSFER,
    "evaluate_all": {
        "parts": Key(
            ("knn", "few_label", "probe", "lbfgs", "finetune", "transfer"), "the evaluations to run"
        ),
        "finetune_labels": Key((0.01, 0.1), "shares, one fine-tuning each", (1e-6, 1)),
    }
    | _KNN
    | _FEW_LABEL
    | _PROBE
    | _LBFGS
    | _FINETUNING
    | _TRANSFER,
    "report": _REPORT,
}
# Every key of an evaluation.
KEYS = dict(_SHARED)
for _keys in _JOBS.values():
    KEYS |= _keys


def evaluation(job: str, recipe: str = "default") -> ConfigDict:
    """Returns the config of an evaluation, with the numbers of a recipe.

    Raises:
      UsageError: if there is no such recipe.
    """
    check_recipe(recipe, RECIPES)
    config = ConfigDict({"job": job, "recipe": recipe})
    add_keys(config, _SHARED | _JOBS.get(job, {}))
    if job == "linear":
        _set_linear_protocol(config)
    if recipe == "imagenet" and job in ("finetune", "evaluate_all"):
        _set_finetuning_of_papers(config)
    return config


def _set_linear_protocol(config: ConfigDict) -> None:
    """The linear protocol on images: LARS on a linear layer behind a frozen backbone.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), appendix A.
    """
    is_paper = config.recipe == "imagenet"
    config.protocol = "images" if is_paper else "probe"
    config.optim.update({"name": "lars", "cosine_per": "epoch"})
    config.views.crop_area = (0.08, 1.0) if is_paper else ()
    config.data.batch_size = 4096 if is_paper else 256
    config.run.num_epochs = 90


def _set_finetuning_of_papers(config: ConfigDict) -> None:
    """Fine-tuning of all weights, with a rate for the backbone and one for the linear layer.

    Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733), appendix C.
    """
    config.optim.backbone_learning_rates = (0.01, 0.02, 0.05)
    config.optim.head_learning_rates = (0.1, 0.5, 1.0)
    config.views.crop_area = (0.08, 1.0)
    config.data.batch_size = 1024
