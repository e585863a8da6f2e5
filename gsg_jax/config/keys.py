"""Every pretraining key once: default, limits, whether it may change when a run resumes, meaning.

The defaults are those of the papers: ResNet-50 on ImageNet, 100 epochs, batch 512. A recipe
(recipes.py) changes some of them, and a method adds the options of its row in METHODS.
"""

from gsg_jax.methods import METHODS, PREDICTORS, SOURCES, TARGETS, Key
from gsg_jax.methods.guided_sources import SOURCES_BY
from gsg_jax.models.heads import PROJECTOR_ENDS
from gsg_jax.models.norm import BACKBONE_NORMS, HEAD_NORMS
from gsg_jax.models.resnet import STEMS
from gsg_jax.models.siamese import BACKBONES
from gsg_jax.models.vit import POOLINGS, POSITIONS

OPTIMIZERS = ("sgd", "lars", "adamw")
EMA_SCHEDULES = ("constant", "cosine")
COSINES = ("epoch", "step")
FEW_LABELS = (1, 5, 10)  # labelled images per class for the few-label accuracy
CROPS = ("device", "host")

# When a key may differ from the record of the run that is resumed: never; until an imported
# checkpoint has been trained on, since its state does not depend on the key; or at any time.
NEVER, UNTIL_TRAINED, ALWAYS = "never", "until trained", "always"


def _group(name: str, may_change: str, keys: dict[str, Key]) -> dict[str, Key]:
    """The keys of a group by their dotted names."""
    return {
        f"{name}.{key}": row._replace(may_change=row.may_change or may_change)
        for key, row in keys.items()
    }


_METHOD = {
    "name": Key("", "the loss, a row of gsg_jax.methods.METHODS", METHODS),
    "target": Key("auto", "branch that gives the targets; auto: the method's", ("auto", *TARGETS)),
    "predictor": Key(
        "auto", "head behind the projector; auto: the method's", ("auto", *PREDICTORS)
    ),
    "num_views": Key(2, "views per image and step; with local views, of the global ones", (2, 64)),
    "ema_decay": Key(0.99, "share of an EMA target that one step keeps", (0, 1)),
    "ema_schedule": Key("constant", "cosine: ema_decay rises to 1", EMA_SCHEDULES),
    "stop_gradient": Key(True, "False: the gradient reaches an online target, too"),
    "sources_by": Key("method", "guided: sources by guided stop-gradient", SOURCES_BY),
    "sources": Key("all", "views that guided stop-gradient runs the online branch on", SOURCES),
}

_MODEL = {
    "backbone": Key("resnet50", "a ResNet or a ViT; a ViT's sizes are in its name", BACKBONES),
    # ResNets only.
    "width": Key(64, "channels of the first stage", (1, 4096)),
    "num_stages": Key(4, "stages; each after the first halves the map", (1, 4)),
    "stem": Key("imagenet", "small: one 3x3 convolution, no pooling", STEMS),
    "stem_stride": Key(1, "stride of the small stem", (1, 8)),
    "zero_init_residual": Key(True, "each residual branch starts as the identity"),
    "norm": Key("batch", "normalisation of the backbone", BACKBONE_NORMS),
    "norm_groups": Key(32, "groups of norm=group; divides the width", (1, 4096)),
    "weight_standardization": Key(False, "standardise every kernel; goes with norm=group"),
    # ViTs only.
    "num_heads": Key(0, "attention heads; 0: those of the backbone's name", (0, 4096)),
    "patch_size": Key(16, "pixels; divides views.size", (1, 1024)),
    "pooling": Key("class_token", "mean: over the patches, without a class token", POOLINGS),
    "positions": Key("fixed", "fixed: sines and cosines", POSITIONS),
    "freeze_patches": Key(False, "keep the projection of the patches as it was drawn"),
    "drop_path": Key(0.0, "share of the images that skip a branch of the last block", (0, 0.99)),
    # Both.
    "projector_layers": Key(3, "layers of the projector", (1, 16)),
    "projector_hidden_width": Key(2048, "width of its hidden layers", (1, 65536)),
    "projector_width": Key(2048, "width of the projections", (1, 65536)),
    "projector_end": Key("batch_norm", "the norm at its end, of head_norm's kind", PROJECTOR_ENDS),
    "num_prototypes": Key(0, "scores that both branches end in; 0: none", (0, 1e6)),
    "predictor_hidden_width": Key(512, "width of the predictor's hidden layer", (1, 65536)),
    "head_norm": Key("batch", "normalisation of the projector and the predictor", HEAD_NORMS),
    "bn_momentum": Key(0.1, "weight of the new statistics, as PyTorch counts it", (0, 1)),
    "bn_group_images": Key(0, "images that BatchNorm takes together; 0: the batch", (0, 1e7)),
    "bn_epsilon": Key(1e-5, "of BatchNorm, GroupNorm and the heads' LayerNorm", (1e-12, 1)),
    "dtype": Key("float32", "of the activations", ("float32", "bfloat16")),
    "recompute": Key(False, "compute the blocks' activations again in the backward pass"),
}

_OPTIM = {
    "name": Key("sgd", "the optimizer", OPTIMIZERS),
    "learning_rate": Key(0.05, "per 256 images", (0, 1e4), may_change=UNTIL_TRAINED),
    "momentum": Key(0.9, "of SGD and LARS; AdamW's first beta", (0, 0.99999)),
    "weight_decay": Key(1e-4, "as the optimizer counts it", (0, 1e3), may_change=UNTIL_TRAINED),
    "decay_weights_only": Key(False, "no decay of biases, norms and positions"),
    "trust_coefficient": Key(1e-3, "of LARS", (0, 1e3)),
    "warmup_epochs": Key(0.0, "linear warm-up", (0, 1e6), may_change=UNTIL_TRAINED),
    "cosine_per": Key("epoch", "when the rate falls", COSINES, may_change=UNTIL_TRAINED),
    "constant_predictor_lr": Key(True, "the predictor's rate does not fall"),
    "num_microbatches": Key(1, "parts that the backbone takes a batch in", (1, 1e6)),
    # A step is skipped if its loss or gradient is not finite, or its gradient norm is too large.
    "max_skipped_steps": Key(
        0, "skipped steps of a whole run; 0: the first one stops it", (0, 1e9), may_change=ALWAYS
    ),
    "grad_norm_limit": Key(0.0, "a step above it counts as not finite; 0: no limit", (0, 1e30)),
}

_DATA = {
    "name": Key("imagenet2012", "embedded, folder, hf:PATH, a TFDS name or a custom set"),
    "dir": Key("", "the TFDS folder ('': TFDS's default) or the image folder"),
    "train_split": Key("train", "the split to train on"),
    "test_split": Key("validation", "the split that the monitor scores"),
    "follow_links": Key(False, "follow links that lead out of the image folder"),
    "batch_size": Key(512, "images over all devices and hosts", (2, 1e7)),
    "crop": Key("host", "host: crops are cut while decoding; device: inside the step", CROPS),
    "memory_limit_mb": Key(1024, "sets of one shape up to this size are decoded once", (0, 1e9)),
    "num_threads": Key(16, "threads that decode", (1, 1024), may_change=ALWAYS),
    "num_processes": Key(0, "processes that decode instead; 0: none", (0, 1024), may_change=ALWAYS),
    "prefetch": Key(4, "batches made ahead", (1, 1024), may_change=ALWAYS),
}

_VIEWS = {
    "size": Key(224, "pixels of a view's side", (1, 4096)),
    "crop_area": Key((0.2, 1.0), "share of the image", (1e-6, 1), 2, is_ordered=True),
    "crop_aspect": Key((3 / 4, 4 / 3), "width over height", (1e-2, 1e2), 2, is_ordered=True),
    "flip_probability": Key(0.5, "of a horizontal flip", (0, 1)),
    "jitter": Key((0.4, 0.4, 0.4, 0.1), "brightness, contrast, saturation, hue", (0, 10), 4),
    "jitter_probability": Key(0.8, "of the jitter", (0, 1)),
    "grayscale_probability": Key(0.2, "of a grey view", (0, 1)),
    "blur_probability": Key((0.5,), "one per view, cycled through", (0, 1)),
    "blur_sigma": Key((0.1, 2.0), "pixels", (1e-3, 100), 2, is_ordered=True),
    "solarize_probability": Key((0.0,), "one per view, cycled through", (0, 1)),
    "mean": Key((0.485, 0.456, 0.406), "of each channel, or one of all", (-1e3, 1e3)),
    "std": Key((0.229, 0.224, 0.225), "of each channel, or one of all", (1e-6, 1e3)),
    "num_local": Key(0, "local views per image besides the global ones (multi-crop)", (0, 64)),
    "local_size": Key(96, "pixels of a local view's side", (1, 4096)),
    "local_crop_area": Key((0.05, 0.2), "share of the image", (1e-6, 1), 2, is_ordered=True),
    "cutmix_probability": Key(0.0, "of a patch of another image in the views of a step", (0, 1)),
}

_EVAL = {
    "knn_every_epochs": Key(10, "epochs between two scores: k-NN and RankMe; 0: none", (0, 1e9)),
    "knn_k": Key(200, "neighbours", (1, 1e9)),
    "knn_temperature": Key(0.2, "of the neighbours' weights", (0.02, 1e3)),
    "knn_pixels": Key(False, "score raw pixels before training; for small images"),
    "lidar_views": Key(0, "views of up to 1,000 images that LiDAR embeds; 0: no LiDAR", (0, 1000)),
    "few_label": Key(True, "accuracy with 1, 5, 10 labels a class, at the run's start and end"),
    "batch_size": Key(512, "images embedded together", (1, 1e7)),
    "max_bank": Key(100_000, "training images that the monitor's k-NN looks at", (2, 1e12)),
    "online_linear": Key(
        False, "train a linear probe on embeddings without gradient", may_change=NEVER
    ),
    "online_linear_learning_rate": Key(1e-3, "of the probe's Adam", (0, 1e3), may_change=NEVER),
    "inspect_gradients": Key(False, "log the parts of the gradient and their balance"),
    "min_projection_std": Key(0.5, "a collapse is reported below this", (0, 1)),
    "min_rank_share": Key(0.5, "... and below this share of the run's highest rank", (0, 1)),
}

_RUN = {
    "seed": Key(0, "of all that is drawn", (0, 2**31 - 1)),
    "num_epochs": Key(100, "length of the run", (1, 1e9)),
    "num_steps": Key(0, "length of the run in steps; 0: from the epochs", (0, 1e9)),
    "patience_epochs": Key(
        0,
        "end after so many epochs without a better k-NN, or in collapse; 0: off",
        (0, 1e9),
        may_change=ALWAYS,
    ),
    "log_every_steps": Key(50, "steps between two logged ones", (1, 1e9)),
    "checkpoint_every_steps": Key(1000, "steps between two checkpoints", (1, 1e9)),
    "keep_checkpoints": Key(
        2, "the newest, and the best by k-NN besides", (1, 1e6), may_change=ALWAYS
    ),
    "keep_every": Key(
        0, "steps whose multiples are kept too; 0: none", (0, 1e9), may_change=ALWAYS
    ),
    "fsdp": Key(1, "devices that share one copy of the train state", (1, 1e6), may_change=ALWAYS),
    "watchdog_seconds": Key(
        1800.0,
        "a run that stands still for so long leaves its stacks and ends; 0: off",
        (0, 1e7),
        may_change=ALWAYS,
    ),
    "accept_changes": Key(
        False, "resume although the images or JAX's settings have changed", may_change=ALWAYS
    ),
    "report": Key(True, "write report.html at the end", may_change=ALWAYS),
    "wandb_project": Key("", "of Weights & Biases, which gets a copy; '': off", may_change=ALWAYS),
}

KEYS = {
    "init_from": Key("", "workdir of the run whose weights this one starts from", may_change=NEVER),
    **_group("method", NEVER, _METHOD),
    **_group("model", NEVER, _MODEL),
    **_group("optim", NEVER, _OPTIM),
    **_group("data", UNTIL_TRAINED, _DATA),
    **_group("views", UNTIL_TRAINED, _VIEWS),
    **_group("eval", UNTIL_TRAINED, _EVAL),
    **_group("run", UNTIL_TRAINED, _RUN),
}
GROUPS = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS if "." in key))


def option_keys(method: str = "") -> dict[str, Key]:
    """The keys that only some methods have, by their dotted names; configs give their values.

    If two methods define an option differently, the definition of `method` is used.
    """
    rows = [*METHODS.values(), *filter(None, [METHODS.get(method)])]
    return _group("method", NEVER, {key: row for of in rows for key, row in of.options.items()})


def free_keys(*, is_trained: bool) -> set[str]:
    """The keys that may differ from the record of the run that is resumed.

    is_trained is False for an imported checkpoint that no step has changed yet.
    """
    free = (ALWAYS,) if is_trained else (ALWAYS, UNTIL_TRAINED)
    keys = {key for key, row in KEYS.items() if row.may_change in free}
    return keys if is_trained else keys | {"recipe"}
