"""Recipes: which data, network sizes and schedule a pretraining config takes, by name.

Every config in configs/ that pretrains takes each of these names after a colon, as in
`configs/simsiam_gsg.py:cifar10`. A config changes the method; a recipe changes all the rest.
"""

import difflib
from collections.abc import Collection

from ml_collections import ConfigDict

from gsg_jax.console import UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pretraining(recipe: str) -> ConfigDict:
    """Builds the config of a pretraining run, but for its method.

    Args:
      recipe: one of RECIPES.

    Returns:
      A config with the groups model, method, optim, data, views, eval and run.

    Raises:
      UsageError: where there is no such recipe.
    """
    check_recipe(recipe, RECIPES)
    config = _imagenet()
    config.recipe = recipe
    RECIPES[recipe](config)
    return config


def check_recipe(recipe: str, known: Collection[str]) -> None:
    """Raises UsageError where a recipe is not among the known ones; names the nearest."""
    if recipe not in known:
        near = difflib.get_close_matches(recipe, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no recipe {recipe!r}: {hint}take one of {', '.join(known)}")


def _imagenet() -> ConfigDict:
    """The papers' recipe: ResNet-50 on ImageNet, 100 epochs, batch 512."""
    config = ConfigDict()
    config.job = "pretrain"
    config.recipe = "imagenet"
    config.method = ConfigDict(
        {
            "name": "",
            # "online", "ema", "ema_positive" (whose negatives are online), or the method's own
            "target": "auto",
            "predictor": "auto",  # "mlp", "none", or the method's own
            "num_views": 2,  # an image and step; with local views: of its global ones
            "ema_decay": 0.99,  # read where the target is an EMA
            "ema_schedule": "constant",  # or "cosine": rises from ema_decay to 1
            "stop_gradient": True,  # False: the gradient reaches an online target; it collapses
            # Of guided stop-gradient: what the online branch runs on, "all" views as the paper, or
            # the "selected" ones, which the loss has as sources.
            "sources": "all",
        }
    )
    config.model = ConfigDict(
        {
            "backbone": "resnet50",  # or another ResNet, or a ViT: vit_tiny, vit_small, vit_base
            # Of ResNets; a ViT's sizes are in its name.
            "width": 64,  # channels of the first stage
            "num_stages": 4,  # 1 to 4; each after the first halves the map
            "stem": "imagenet",  # or "small": one 3x3 convolution, no pooling
            "stem_stride": 1,  # of the "small" stem
            "zero_init_residual": True,  # each residual branch starts as the identity
            "norm": "batch",  # or "group"
            "norm_groups": 32,  # of "group"; divides the width
            "weight_standardization": False,  # of every convolution's kernel; goes with "group"
            # Of ViTs.
            "patch_size": 16,  # pixels; divides views.size
            "pooling": "class_token",  # or "mean", over the patches, without a class token
            "positions": "fixed",  # sines and cosines, or "learned"
            "freeze_patches": False,  # True: the patches' projection stays as it was drawn
            "drop_path": 0.0,  # share of the images that skip a branch of the last block
            # Of both.
            "projector_layers": 3,
            "projector_hidden_width": 2048,
            "projector_width": 2048,
            "num_prototypes": 0,  # 0 = none; else both branches end in scores of so many
            "predictor_hidden_width": 512,
            "head_norm": "batch",  # or "layer", in the projector and the predictor
            "bn_momentum": 0.1,  # weight of the new statistics, as PyTorch counts it
            "bn_group_images": 0,  # images that BatchNorm normalises together; 0 = the whole batch
            "bn_epsilon": 1e-5,  # of GroupNorm and the heads' LayerNorm too
            "dtype": "float32",  # of the activations; "bfloat16" on TPUs and recent GPUs
            "recompute": False,  # True: the backward pass computes the blocks' activations anew
        }
    )
    config.optim = ConfigDict(
        {
            "name": "sgd",  # or "lars", "adamw"
            "learning_rate": 0.05,  # per 256 images
            "momentum": 0.9,  # AdamW's first beta
            "weight_decay": 1e-4,
            "decay_weights_only": False,  # True leaves biases, norms and positions out of the decay
            "trust_coefficient": 1e-3,  # of LARS
            "warmup_epochs": 0.0,
            "cosine_per": "epoch",  # or "step"
            "constant_predictor_lr": True,
            "num_microbatches": 1,  # parts that the backbone takes a batch in, to save memory
            # Of a whole run: steps whose loss or gradient is not finite, or whose gradient norm is
            # above the limit, and that change nothing; 0 = the first one stops the run.
            "max_skipped_steps": 0,
            "grad_norm_limit": 0.0,  # 0 = none
        }
    )
    config.data = ConfigDict(
        {
            "name": "imagenet2012",  # a TFDS name, "folder", or "embedded"
            "dir": "",  # TFDS data folder ("" = its default), or the image folder
            "train_split": "train",
            "test_split": "validation",
            "batch_size": 512,  # images over all devices and hosts
            "crop": "host",  # "host" cuts the crops while decoding, "device" inside the step
            "memory_limit_mb": 1024,  # sets of one shape up to this size are decoded once
            "num_threads": 16,
            "num_processes": 0,  # 0 = decode in the threads; else in so many processes instead
            "prefetch": 4,  # batches
        }
    )
    config.views = ConfigDict(
        {
            "size": 224,
            "crop_area": (0.2, 1.0),
            "crop_aspect": (3 / 4, 4 / 3),
            "flip_probability": 0.5,
            "jitter": (0.4, 0.4, 0.4, 0.1),  # brightness, contrast, saturation, hue
            "jitter_probability": 0.8,
            "grayscale_probability": 0.2,
            "blur_probability": (0.5,),  # per view, cycled through
            "blur_sigma": (0.1, 2.0),
            "solarize_probability": (0.0,),  # per view, cycled through
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "num_local": 0,  # local views an image besides the global ones (multi-crop)
            "local_size": 96,
            "local_crop_area": (0.05, 0.2),
            "cutmix_probability": 0.0,  # of a patch of another image in a step's views
        }
    )
    config.eval = ConfigDict(
        {
            "knn_every_epochs": 10,  # 0 = never
            "knn_k": 200,
            "knn_temperature": 0.2,
            "knn_pixels": False,  # score raw pixels too, before training; for small images
            "batch_size": 512,
            "max_bank": 100_000,  # training images that the monitor's k-NN looks at
            "online_linear": False,  # train a linear probe beside, on embeddings without gradient
            "online_linear_learning_rate": 1e-3,  # of its Adam
            "inspect_gradients": False,  # log the parts of the gradient and their balance
            "min_projection_std": 0.5,  # a collapse is reported below this
            "min_rank_share": 0.5,  # ... and below this share of the run's highest rank
        }
    )
    config.run = ConfigDict(
        {
            "seed": 0,
            "num_epochs": 100,
            "num_steps": 0,  # 0 = from the epochs
            "log_every_steps": 50,
            "checkpoint_every_steps": 1000,
            "keep_checkpoints": 2,  # the newest, and the best by k-NN besides
            "keep_every": 0,  # steps; those of a multiple are kept too, 0 = no others
            "store_patience_seconds": 600,  # a save waits for a workdir that has vanished
            "fsdp": 1,  # devices that share one copy of the train state
            # A run that stands still for so long says where, and ends after as long again; 0 = off
            "watchdog_seconds": 1800.0,
            "report": True,  # report.html at the end
            "wandb_project": "",  # of Weights & Biases, which gets the logged figures too; "" = off
        }
    )
    return config


def byol_views(config: ConfigDict) -> None:
    """BYOL's asymmetric pair: blur always or rarely, solarize never or sometimes (by view).

    Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733), table 6.
    """
    config.views.update(
        {
            "crop_area": (0.08, 1.0),
            "jitter": (0.4, 0.4, 0.2, 0.1),
            "blur_probability": (1.0, 0.1),
            "solarize_probability": (0.0, 0.2),
        }
    )


def guided_pairs(config: ConfigDict) -> None:
    """Who is whose reference in guided stop-gradient: the paper's four views, or a cheaper two.

    The recipes for a laptop pair each image with the next inside two views, which halves the
    views an image and step.
    """
    is_small = config.recipe in ("default", "vit", "fashion_mnist", "folder")
    config.method.pairing = "roll" if is_small else "permutation"
    config.method.num_views = 2 if is_small else 4


def _small_images(config: ConfigDict) -> None:
    """28 or 32 pixels, ResNet-18 with the small stem, crops inside the step."""
    config.model.update({"backbone": "resnet18", "stem": "small"})
    config.optim.update({"learning_rate": 0.03, "weight_decay": 5e-4, "cosine_per": "step"})
    config.data.update({"test_split": "test", "crop": "device", "num_threads": 2, "prefetch": 2})
    config.views.update({"size": 32, "blur_probability": (0.0,), "local_size": 16})
    config.eval.update({"knn_every_epochs": 5, "batch_size": 500, "knn_pixels": True})


def _cifar10(config: ConfigDict) -> None:
    _small_images(config)
    config.data.name = "cifar10"
    config.views.update({"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)})
    config.run.num_epochs = 800


def _fashion_mnist(config: ConfigDict) -> None:
    """All 60,000 images."""
    _garments(config)
    config.data.update({"name": "fashion_mnist", "batch_size": 64})
    config.eval.knn_every_epochs = 4
    config.run.num_epochs = 12


def _default(config: ConfigDict) -> None:
    """The embedded images; tuned for five minutes of training on two cores."""
    _garments(config)
    config.data.update({"name": "embedded", "batch_size": 32})
    config.eval.knn_every_epochs = 4
    config.run.num_epochs = 16


def _vit(config: ConfigDict) -> None:
    """The embedded images by a small vision transformer, 16 patches an image."""
    _default(config)
    config.model.update({"backbone": "vit_micro", "patch_size": 7, "pooling": "mean"})
    config.optim.update(
        {
            "name": "adamw",
            "learning_rate": 4e-3,
            "weight_decay": 0.05,
            "decay_weights_only": True,
            "warmup_epochs": 1.0,
            "constant_predictor_lr": False,
        }
    )


def _garments(config: ConfigDict) -> None:
    """Fashion-MNIST on a CPU.

    The garments are centred and of one size, so that shape tells the classes apart and crops cost
    accuracy: the views differ by brightness, contrast and blur instead, strongly. Four stages end
    in a map of 2 x 2 pixels, which keeps where things are; pooling a larger one forgets it.
    """
    _small_images(config)
    config.model.update(
        {
            "backbone": "resnet10",
            "width": 24,
            "stem_stride": 2,
            "zero_init_residual": False,
            "projector_hidden_width": 512,
            "projector_width": 512,
            "predictor_hidden_width": 128,
        }
    )
    config.optim.learning_rate = 0.4
    config.views.update(
        {
            "size": 28,
            "crop_area": (0.7, 1.0),
            "crop_aspect": (0.9, 1 / 0.9),
            "jitter": (0.8, 0.8, 0.0, 0.0),
            "jitter_probability": 1.0,
            "grayscale_probability": 0.0,
            "blur_probability": (0.5,),
            "blur_sigma": (0.1, 1.0),
            "solarize_probability": (0.2,),
            "local_size": 14,
            "local_crop_area": (0.2, 0.6),
            "mean": (0.286,),
            "std": (0.353,),
        }
    )
    config.eval.knn_k = 20
    config.run.update({"log_every_steps": 100, "checkpoint_every_steps": 500})


def _folder(config: ConfigDict) -> None:
    """Own photographs: ResNet-18 at 96 pixels, small enough to begin on one machine."""
    config.data.update({"name": "folder", "test_split": "test", "batch_size": 64, "num_threads": 2})
    config.model.update(
        {
            "backbone": "resnet18",
            "width": 32,
            "projector_hidden_width": 512,
            "projector_width": 512,
            "predictor_hidden_width": 128,
        }
    )
    config.optim.update({"learning_rate": 0.1, "cosine_per": "step"})
    config.views.update({"size": 96, "local_size": 48})
    config.eval.update({"knn_every_epochs": 5, "knn_k": 20, "batch_size": 64})
    config.run.update({"num_epochs": 50, "checkpoint_every_steps": 200, "log_every_steps": 10})


def _paper(config: ConfigDict) -> None:
    del config  # what every recipe starts from


def _imagenet_800(config: ConfigDict) -> None:
    """ResNet-50 for 800 epochs by LARS, a wider projector, an EMA target that comes to rest.

    Biases and BatchNorm's scales are left out of LARS's adaptation and of the decay. Not yet run.

    Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733), section 3.3 and appendix J: warm-up,
    cosine, LARS, decay 1.5e-6, EMA cosine from 0.996; projector as in Tao et al., CVPR 2022
    (arXiv 2112.05141), table 10.
    """
    config.optim.update(
        {
            "name": "lars",
            "learning_rate": 0.3,
            "weight_decay": 1.5e-6,
            "decay_weights_only": True,
            "warmup_epochs": 10.0,
            "cosine_per": "step",
            "constant_predictor_lr": False,
        }
    )
    config.method.update({"ema_decay": 0.996, "ema_schedule": "cosine"})
    config.model.update({"projector_hidden_width": 4096, "projector_width": 4096})
    config.data.batch_size = 4096
    config.run.update({"num_epochs": 800, "checkpoint_every_steps": 2000})


def _imagenet_vit(config: ConfigDict) -> None:
    """ViT-S/16 with frozen patches, as MoCo v3 trains it, its projector's sizes included.

    Differs from it: 6 attention heads a block, as in DeiT and timm, where it has 12; no BatchNorm
    at the end of the predictor.

    Source: Chen, Xie & He, ICCV 2021 (arXiv 2104.02057), section 5.
    """
    config.model.update(
        {
            "backbone": "vit_small",
            "freeze_patches": True,
            "projector_hidden_width": 4096,
            "projector_width": 256,
            "predictor_hidden_width": 4096,
        }
    )
    config.method.ema_schedule = "cosine"  # from 0.99
    config.optim.update(
        {
            "name": "adamw",
            "learning_rate": 1.5e-4,
            "weight_decay": 0.1,
            "decay_weights_only": True,
            "warmup_epochs": 40.0,
            "cosine_per": "step",
            "constant_predictor_lr": False,
        }
    )
    config.data.batch_size = 4096
    config.run.num_epochs = 300


def _imagenet_groupnorm(config: ConfigDict) -> None:
    """ResNet-50 without any BatchNorm: GroupNorm, standardised weights, LayerNorm in the heads.

    The values are our own, plain ones, and have not yet been run.
    """
    config.model.update({"norm": "group", "weight_standardization": True, "head_norm": "layer"})
    config.optim.update(
        {
            "name": "adamw",
            "learning_rate": 1.5e-4,
            "weight_decay": 0.1,
            "decay_weights_only": True,
            "warmup_epochs": 10.0,
            "cosine_per": "step",
            "constant_predictor_lr": False,
        }
    )
    config.data.batch_size = 1024


RECIPES = {
    "default": _default,
    "vit": _vit,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "imagenet": _paper,
    "imagenet_800": _imagenet_800,
    "imagenet_vit": _imagenet_vit,
    "imagenet_groupnorm": _imagenet_groupnorm,
    "folder": _folder,
}
