"""Recipes: what the data, network sizes and schedule of a named experiment change in KEYS.

Every config in configs/ that pretrains takes each of these names after a colon, as in
`simsiam_gsg:cifar10`. A config sets the method; a recipe sets everything else.
"""

import difflib
from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from gsg_jax.config.keys import KEYS, Key
from gsg_jax.console import UsageError

# What all optimizers with a warm-up share.
_WARMED_UP = {"decay_weights_only": True, "cosine_per": "step", "constant_predictor_lr": False}
_SMALL_HEADS = {
    "projector_hidden_width": 512,
    "projector_width": 512,
    "predictor_hidden_width": 128,
}


def pretraining(recipe: str) -> ConfigDict:
    """Returns the config of a pretraining run by a recipe of RECIPES, except for its method.

    Raises:
      UsageError: if there is no such recipe.
    """
    check_recipe(recipe, RECIPES)
    config = ConfigDict({"job": "pretrain", "recipe": recipe})
    add_keys(config, KEYS)
    RECIPES[recipe](config)
    return config


def add_keys(config: ConfigDict, keys: Mapping[str, Key]) -> None:
    """Adds keys with their defaults; those that the config already has keep their values."""
    for name, row in keys.items():
        group, _, key = name.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        part = config[group] if group else config
        if key not in part:
            part[key] = row.default


def check_recipe(recipe: str, known: Collection[str]) -> None:
    """Raises UsageError if a recipe is not a known one; names the nearest."""
    if recipe not in known:
        near = difflib.get_close_matches(recipe, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no recipe {recipe!r}: {hint}take one of {', '.join(known)}")


def byol_views(config: ConfigDict) -> None:
    """Sets BYOL's asymmetric pair of views: blur always or rarely, solarize never or sometimes.

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
    """Sets how guided stop-gradient pairs images: the paper's four views, or a cheaper two.

    The recipes for a laptop pair each image with the next within two views, which halves the views
    per image and step.
    """
    is_small = config.recipe in ("default", "vit", "fashion_mnist", "folder")
    config.method.pairing = "roll" if is_small else "permutation"
    config.method.num_views = 2 if is_small else 4


def _small_images(config: ConfigDict) -> None:
    """Images of 28 or 32 pixels, ResNet-18 with the small stem, crops inside the step."""
    config.model.update({"backbone": "resnet18", "stem": "small"})
    config.optim.update({"learning_rate": 0.03, "weight_decay": 5e-4, "cosine_per": "step"})
    config.data.update({"test_split": "test", "crop": "device", "num_threads": 2, "prefetch": 2})
    config.views.update({"size": 32, "blur_probability": (0.0,), "local_size": 16})
    config.eval.update({"knn_every_epochs": 5, "batch_size": 500, "knn_pixels": True})


def _cifar10(config: ConfigDict) -> None:
    """The small benchmark of Lee & Lee (NeurIPS 2023): SimSiam's CIFAR-10 benchmark for 200 epochs.

    A folder of the images with train/ and test/ works too: data.name=folder, data.dir=FOLDER.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), appendix D.
    """
    _small_images(config)
    config.data.name = "cifar10"
    config.views.update({"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)})
    config.eval.knn_every_epochs = 10
    config.run.num_epochs = 200


def _cifar10_small(config: ConfigDict) -> None:
    """The same for a CPU: 12 epochs of a network of three stages from 8 x 8 pixels.

    On one core a run with two views per image takes five minutes. The k-NN is as good as with four
    stages from 16 x 16 pixels, which take 4.5 times as long (docs/results.md).
    """
    _cifar10(config)
    config.model.update({"backbone": "resnet10", "width": 16, "stem_stride": 4, "num_stages": 3})
    config.model.update({"projector_hidden_width": 256, "projector_width": 256})
    config.model.predictor_hidden_width = 64
    config.optim.learning_rate = 0.4
    config.data.batch_size = 128
    config.eval.knn_every_epochs = 4
    config.run.update({"num_epochs": 12, "checkpoint_every_steps": 200})


def _fashion_mnist(config: ConfigDict) -> None:
    """All 60,000 images."""
    _garments(config)
    config.data.update({"name": "fashion_mnist", "batch_size": 64})
    config.eval.knn_every_epochs = 4
    config.run.num_epochs = 12


def _default(config: ConfigDict) -> None:
    """The embedded images; tuned for two and a half minutes of training on two cores.

    The large stem and three stages end in 2 x 2 pixels, as the small stem of stride 2 and four do,
    but compute on fewer pixels, so the network can be wider for the same time. Shoes all point to
    the left: no flips. Without solarized views, dark and light garments stay apart, which helps
    where labels are few.
    """
    _garments(config)
    config.model.update({"stem": "imagenet", "num_stages": 3, "width": 40})
    config.views.update({"flip_probability": 0.0, "solarize_probability": (0.0,)})
    config.data.update({"name": "embedded", "batch_size": 32})
    config.eval.knn_every_epochs = 4
    config.run.num_epochs = 13


def _vit(config: ConfigDict) -> None:
    """The embedded images and a small vision transformer with 16 patches per image."""
    _default(config)
    config.model.update({"backbone": "vit_micro", "patch_size": 7, "pooling": "mean"})
    config.views.update({"flip_probability": 0.5, "solarize_probability": (0.2,)})
    config.run.num_epochs = 16
    config.optim.update({"name": "adamw", "learning_rate": 4e-3, "weight_decay": 0.05})
    config.optim.update(_WARMED_UP | {"warmup_epochs": 1.0})


def _garments(config: ConfigDict) -> None:
    """Fashion-MNIST on a CPU.

    The garments are centred and of one size. Shape tells the classes apart, so crops cost accuracy;
    the views differ strongly in brightness, contrast and blur instead. Four stages end in a map of
    2 x 2 pixels, which keeps positions; pooling a larger map loses them.
    """
    _small_images(config)
    config.model.update(
        {
            "backbone": "resnet10",
            "width": 24,
            "stem_stride": 2,
            "zero_init_residual": False,
            **_SMALL_HEADS,
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
    config.run.update({"log_every_steps": 100, "checkpoint_every_steps": 100})


def _folder(config: ConfigDict) -> None:
    """The user's photographs: ResNet-18 at 96 pixels, small enough for one machine."""
    config.data.update({"name": "folder", "test_split": "test", "batch_size": 64, "num_threads": 2})
    config.model.update({"backbone": "resnet18", "width": 32, **_SMALL_HEADS})
    config.optim.update({"learning_rate": 0.1, "cosine_per": "step"})
    config.views.update({"size": 96, "local_size": 48})
    config.eval.update({"knn_every_epochs": 5, "knn_k": 20, "batch_size": 64})
    config.run.update({"num_epochs": 50, "checkpoint_every_steps": 200, "log_every_steps": 10})


def _paper(config: ConfigDict) -> None:
    del config  # the defaults of KEYS


def _imagenet_800(config: ConfigDict) -> None:
    """ResNet-50 for 800 epochs with LARS, a wider projector, and an EMA decay that rises to 1.

    LARS's adaptation and the decay leave out biases and BatchNorm's scales. Not yet run.

    Source: Grill et al., NeurIPS 2020 (arXiv 2006.07733), section 3.3 and appendix J: warm-up,
    cosine, LARS, decay 1.5e-6, EMA cosine from 0.996; projector as in Tao et al., CVPR 2022
    (arXiv 2112.05141), table 10.
    """
    config.optim.update({"name": "lars", "learning_rate": 0.3, "weight_decay": 1.5e-6})
    config.optim.update(_WARMED_UP | {"warmup_epochs": 10.0})
    config.method.update({"ema_decay": 0.996, "ema_schedule": "cosine"})
    config.model.update({"projector_hidden_width": 4096, "projector_width": 4096})
    config.data.batch_size = 4096
    config.run.update({"num_epochs": 800, "checkpoint_every_steps": 2000})


def _imagenet_vit(config: ConfigDict) -> None:
    """ViT-S/16 with frozen patches, trained as in MoCo v3, with the sizes of its projector.

    Differs from it: 6 attention heads per block as in DeiT and timm, not 12; no BatchNorm at the
    end of the predictor.

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
    config.optim.update({"name": "adamw", "learning_rate": 1.5e-4, "weight_decay": 0.1})
    config.optim.update(_WARMED_UP | {"warmup_epochs": 40.0})
    config.data.batch_size = 4096
    config.run.num_epochs = 300


def _imagenet_groupnorm(config: ConfigDict) -> None:
    """ResNet-50 without any BatchNorm: GroupNorm, standardised weights, LayerNorm in the heads.

    The values are our own and have not been run yet.
    """
    config.model.update({"norm": "group", "weight_standardization": True, "head_norm": "layer"})
    config.optim.update({"name": "adamw", "learning_rate": 1.5e-4, "weight_decay": 0.1})
    config.optim.update(_WARMED_UP | {"warmup_epochs": 10.0})
    config.data.batch_size = 1024


RECIPES = {
    "default": _default,
    "vit": _vit,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar10_small": _cifar10_small,
    "imagenet": _paper,
    "imagenet_800": _imagenet_800,
    "imagenet_vit": _imagenet_vit,
    "imagenet_groupnorm": _imagenet_groupnorm,
    "folder": _folder,
}
