"""Reading and checking a config: unknown keys, wrong types and impossible values, a line each."""

import difflib
import importlib.util
import inspect
import json
import math
import pathlib
import textwrap
import traceback
from typing import Any

from ml_collections import ConfigDict

from gsg_jax.config import recipes
from gsg_jax.console import UsageError
from gsg_jax.data.augment import ViewRecipe
from gsg_jax.methods import METHODS, PREDICTORS, SOURCES, TARGETS, Method
from gsg_jax.models.norm import BACKBONE_NORMS, HEAD_NORMS
from gsg_jax.models.resnet import STEMS
from gsg_jax.models.siamese import BACKBONES, output_width
from gsg_jax.models.vit import POOLINGS, POSITIONS, VITS
from gsg_jax.train.optim import EMA_SCHEDULES, OPTIMIZERS

CHOICES = {
    "method.name": tuple(METHODS),
    "method.target": ("auto", *TARGETS),
    "method.predictor": ("auto", *PREDICTORS),
    "method.ema_schedule": EMA_SCHEDULES,
    "method.sources": SOURCES,
    "model.backbone": BACKBONES,
    "model.stem": STEMS,
    "model.norm": BACKBONE_NORMS,
    "model.pooling": POOLINGS,
    "model.positions": POSITIONS,
    "model.head_norm": HEAD_NORMS,
    "model.dtype": ("float32", "bfloat16"),
    "optim.name": OPTIMIZERS,
    "optim.cosine_per": ("epoch", "step"),
    "data.crop": ("device", "host"),
}

# What an evaluation judges: a run's newest checkpoint, the same network as the run drew it, or no
# network at all.
ENCODERS = ("pretrained", "untrained", "pixels")
# How the linear evaluation learns: on embeddings by many probes at once or by L-BFGS, or on images.
PROTOCOLS = ("probe", "lbfgs", "images")
EVALUATION_CHOICES = {
    "encoder": ENCODERS,
    "protocol": PROTOCOLS,
    "data.crop": ("", "device", "host"),
    "optim.name": OPTIMIZERS,
    "optim.cosine_per": ("epoch", "step"),
}

# Smallest and largest value of every number that has a limit.
RANGES = {
    "method.num_views": (2, 64),
    "method.ema_decay": (0, 1),
    "model.width": (1, 4096),
    "model.num_stages": (1, 4),
    "model.stem_stride": (1, 8),
    "model.norm_groups": (1, 4096),
    "model.patch_size": (1, 1024),
    "model.drop_path": (0, 0.99),
    "model.projector_layers": (1, 16),
    "model.projector_hidden_width": (1, 65536),
    "model.projector_width": (1, 65536),
    "model.num_prototypes": (0, 1e6),
    "model.predictor_hidden_width": (1, 65536),
    "model.bn_momentum": (0, 1),
    "model.bn_epsilon": (1e-12, 1),
    "optim.learning_rate": (0, 1e4),
    "optim.momentum": (0, 0.99999),
    "optim.weight_decay": (0, 1e3),
    "optim.trust_coefficient": (0, 1e3),
    "optim.warmup_epochs": (0, 1e6),
    "optim.num_microbatches": (1, 1e6),
    "model.bn_group_images": (0, 1e7),
    "run.fsdp": (1, 1e6),
    "optim.max_skipped_steps": (0, 1e9),
    "optim.grad_norm_limit": (0, 1e30),
    "data.batch_size": (2, 1e7),
    "data.memory_limit_mb": (0, 1e9),
    "data.num_threads": (1, 1024),
    "data.num_processes": (0, 1024),
    "data.prefetch": (1, 1024),
    "views.size": (1, 4096),
    "views.flip_probability": (0, 1),
    "views.jitter_probability": (0, 1),
    "views.grayscale_probability": (0, 1),
    "views.num_local": (0, 64),
    "views.local_size": (1, 4096),
    "views.cutmix_probability": (0, 1),
    "eval.knn_every_epochs": (0, 1e9),
    "eval.knn_k": (1, 1e9),
    "eval.knn_temperature": (0.02, 1e3),
    "eval.batch_size": (1, 1e7),
    "eval.max_bank": (2, 1e12),
    "eval.online_linear_learning_rate": (0, 1e3),
    "eval.min_projection_std": (0, 1),
    "eval.min_rank_share": (0, 1),
    "run.seed": (0, 2**31 - 1),
    "run.num_epochs": (1, 1e9),
    "run.num_steps": (0, 1e9),
    "run.log_every_steps": (1, 1e9),
    "run.checkpoint_every_steps": (1, 1e9),
    "run.keep_checkpoints": (1, 1e6),
    "run.keep_every": (0, 1e9),
    "run.store_patience_seconds": (0, 1e6),
    "run.watchdog_seconds": (0, 1e7),
}

# The same of the keys that some methods have.
OPTION_RANGES = {
    "method.temperature": (0.01, 10),
    "method.queue_size": (1, 1e8),
    "method.off_diagonal_weight": (0, 1e3),
    "method.invariance_weight": (0, 1e4),
    "method.variance_weight": (0, 1e4),
    "method.covariance_weight": (0, 1e4),
    "method.loss_scale": (0, 1e3),
    "method.correlation_decay": (0, 1),
    "method.eigenvalue_floor": (0, 10),
    "method.predictor_every_steps": (1, 1e6),
    "method.balance": (0, 1e6),
    "method.target_temperature": (0.01, 10),
    "method.first_target_temperature": (0.01, 10),
    "method.temperature_warmup_steps": (0, 1e9),
    "method.centre_momentum": (0, 1),
    "method.sharpness_weight": (0, 1e3),
    "method.diversity_weight": (0, 1e3),
}

# The same of the evaluations.
EVALUATION_RANGES = {
    "labels": (1e-6, 1),
    "report.max_images": (1, 20_000),
    "report.num_queries": (1, 40),
    "report.num_neighbours": (1, 20),
    "probe.num_epochs": (1, 1e6),
    "probe.batch_size": (1, 1e9),
    "probe.momentum": (0, 0.99999),
    "probe.held_out": (0.01, 0.9),
    "lbfgs.num_l2": (1, 1000),
    "lbfgs.held_out": (0.01, 0.9),
    "run.held_out": (0.01, 0.9),
}

# Length (0 = one or more) and smallest and largest value of the tuples.
TUPLES = {
    "views.crop_area": (2, 1e-6, 1),
    "views.crop_aspect": (2, 1e-2, 1e2),
    "views.local_crop_area": (2, 1e-6, 1),
    "views.jitter": (4, 0, 10),
    "views.blur_probability": (0, 0, 1),
    "views.blur_sigma": (2, 1e-3, 100),
    "views.solarize_probability": (0, 0, 1),
    "views.mean": (0, -1e3, 1e3),
    "views.std": (0, 1e-6, 1e3),
}
# The same of the evaluations.
EVALUATION_TUPLES = {
    "eval.knn_k": (0, 1, 1e9),
    "finetune_labels": (0, 1e-6, 1),
    "probe.learning_rates": (0, 1e-9, 1e6),
    "probe.weight_decays": (0, 0, 1e3),
    "lbfgs.l2": (2, 1e-12, 1e12),
    "optim.backbone_learning_rates": (0, 0, 1e4),
    "optim.head_learning_rates": (0, 1e-9, 1e4),
}
# Keys that the config file and its recipe decide.
FIXED_KEYS = {
    "job": "give the --config of another job",
    "recipe": "give it after the config, as in --config=configs/simsiam_gsg.py:cifar10",
}
ORDERED = (
    "views.crop_area",
    "views.crop_aspect",
    "views.local_crop_area",
    "views.blur_sigma",
    "lbfgs.l2",
)


def load_config(path_and_recipe: str) -> ConfigDict:
    """Runs get_config of a config file, as it stands, without overrides.

    Args:
      path_and_recipe: "configs/simsiam_gsg.py" or "configs/simsiam_gsg.py:cifar10".

    Returns:
      The config.

    Raises:
      UsageError: where the file is missing, has no get_config, or knows no such recipe.
    """
    path, _, recipe = path_and_recipe.partition(":")
    if not pathlib.Path(path).is_file():
        folder = pathlib.Path(path).parent
        there = sorted(p.name for p in folder.glob("*.py"))
        near = difflib.get_close_matches(pathlib.Path(path).name, there, n=1)
        hint = f"did you mean {folder / near[0]}?" if near else "give the path of a config file"
        raise UsageError(f"--config={path}: there is no such file; {hint}")
    spec = importlib.util.spec_from_file_location("gsg_jax_config", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config={path}: not a Python file; give a file of configs/")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise UsageError(f"--config={path}: {_told(error, path)}") from error
    if not hasattr(module, "get_config"):
        raise UsageError(f"--config={path}: defines no get_config(); give a file of configs/")
    if recipe and not inspect.signature(module.get_config).parameters:
        raise UsageError(f"--config={path_and_recipe}: takes no recipe; give --config={path}")
    try:
        config = module.get_config(recipe) if recipe else module.get_config()
    except UsageError as error:
        raise UsageError(f"--config={path_and_recipe}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"--config={path_and_recipe}: {_told(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={path}: get_config() must return an ml_collections.ConfigDict")
    return config


def _told(error: BaseException, path: str) -> str:
    """Where a config file failed, and how, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
    return f"line {line}: {text}"


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by dotted key, in order."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def check_overrides(config: ConfigDict, argv: list[str]) -> None:
    """Checks the `--config.a.b=v` of a command line against the config they override.

    Args:
      config: as load_config returned it.
      argv: the command line.

    Raises:
      UsageError: where a key is unknown (the nearest right one is named) or a value has the wrong
        type.
    """
    known, tuples = flat(config), set()
    for position, argument in enumerate(argv):
        name, equals, text = argument.lstrip("-").partition("=")
        is_negated = name.startswith("noconfig.")  # --noconfig.a.b is --config.a.b=false
        if not argument.startswith("-") or not (is_negated or name.startswith("config.")):
            continue
        key = name.partition(".")[2]
        if key not in known:
            raise UsageError(f"--config.{key}: there is no such key{_nearest(key, known)}")
        if key in FIXED_KEYS:
            raise UsageError(f"--config.{key} cannot be set: {FIXED_KEYS[key]}")
        if isinstance(known[key], bool) and not equals:
            continue
        if is_negated:
            raise UsageError(f"--no{name.removeprefix('no')}: {key} is not true or false")
        if isinstance(known[key], tuple):
            if key in tuples:  # absl would join the two
                raise UsageError(f"--config.{key} is given twice: give it once")
            tuples.add(key)
        if not equals:
            text = "".join(argv[position + 1 : position + 2])
        _check_type(key, text, known[key])


def _nearest(key: str, known: dict[str, Any]) -> str:
    if group := [name for name in known if name.startswith(key + ".")]:
        return f"; it is a group, set a key of it, such as --config.{group[0]}"
    near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = " or ".join(f"--config.{name}" for name in near)
    return f"; did you mean {hint}?" if near else f"; keys are {', '.join(known)}"


def _check_type(key: str, text: str, default: Any) -> None:
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    try:
        if isinstance(default, bool):
            if text.lower() not in ("true", "false", "1", "0", "t", "f"):
                raise ValueError
        elif isinstance(default, int | float):
            type(default)(text)
    except ValueError:
        kind = words[type(default)]
        raise UsageError(f"--config.{key}={text}: takes {kind}, such as {default}") from None


def check_pretraining(config: ConfigDict) -> None:
    """Checks the values of a pretraining config, alone and together.

    Args:
      config: with its overrides.

    Raises:
      UsageError: names the key, its value, the limit and the mend.
    """
    leaves = flat(config)
    for key in (*CHOICES, *RANGES, *TUPLES):
        if key not in leaves:
            raise UsageError(
                f"the config lacks {key}: start from gsg_jax.config.recipes.pretraining"
            )
    for key, choices in CHOICES.items():
        _check_choice(key, leaves[key], choices)
    check_ranges(config)
    for key, (length, low, high) in TUPLES.items():
        _check_tuple(key, leaves[key], length, low, high)
    _check_kinds(leaves)
    _check_together(config)


def check_evaluation(config: ConfigDict) -> None:
    """Checks the values of an evaluation's config.

    Args:
      config: with its overrides.

    Raises:
      UsageError: names the key, its value, the limit and the mend.
    """
    leaves = flat(config)
    for key, choices in EVALUATION_CHOICES.items():
        if key in leaves:
            _check_choice(key, leaves[key], choices)
    check_ranges(config)
    for key, (length, low, high) in EVALUATION_TUPLES.items():
        if key in leaves:
            _check_tuple(key, leaves[key], length, low, high)
    ks = leaves.get("eval.knn_k", ())
    if not all(isinstance(k, int) for k in ks):
        raise UsageError(f"--config.eval.knn_k={ks}: takes whole numbers, such as (20,200)")
    if leaves.get("views.crop_area"):
        _check_tuple("views.crop_area", leaves["views.crop_area"], *TUPLES["views.crop_area"])
    if config.pretrained and config.get("features"):
        raise UsageError(
            f"--config.features={config.features}: cannot be had together with "
            f"--config.pretrained={config.pretrained}: give one of them"
        )
    if not config.pretrained and not config.get("features"):
        alone = ", or --config.features the folder of embeddings" if "features" in config else ""
        raise UsageError(
            f"--config.pretrained is empty: give the --workdir of a pretraining run{alone}"
        )


def check_ranges(config: ConfigDict) -> None:
    """Raises UsageError where a number of the config is outside its limits."""
    for key, value in flat(config).items():
        limits = (RANGES | OPTION_RANGES | EVALUATION_RANGES).get(key)
        if limits is None or isinstance(value, tuple):
            continue
        low, high = limits
        if not _is_number(value) or not low <= value <= high:  # NaN is in no range
            raise UsageError(f"--config.{key}={value}: must be a number from {low:g} to {high:g}")


def _check_kinds(leaves: dict[str, Any]) -> None:
    """Checks what a config file of the user's own may have mistyped; a command line cannot."""
    words = {bool: "true or false", int: "a whole number", str: "a text"}
    for key, default in flat(recipes.pretraining("imagenet")).items():
        kind, value = type(default), leaves.get(key, default)
        if kind in words and type(value) is not kind:
            raise UsageError(f"--config.{key}={value}: takes {words[kind]}, such as {default!r}")


def _check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        listed = ", ".join(choice or "''" for choice in choices)
        raise UsageError(f"--config.{key}={value}: {hint}take one of {listed}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_tuple(key: str, values: tuple, length: int, low: float, high: float) -> None:
    if not isinstance(values, tuple) or not all(map(_is_number, values)):
        raise UsageError(
            f"--config.{key}={values}: takes numbers in parentheses, such as (0.2,1.0)"
        )
    if (length and len(values) != length) or not values:
        raise UsageError(f"--config.{key}={values}: takes {length or 'one or more'} numbers")
    if not all(low <= v <= high for v in values):
        raise UsageError(f"--config.{key}={values}: each must be from {low:g} to {high:g}")
    if key in ORDERED and values[0] > values[1]:
        raise UsageError(f"--config.{key}={values}: the first must not exceed the second")


def _check_keep_every(run: ConfigDict) -> None:
    if remainder := run.keep_every % run.checkpoint_every_steps:
        lower = run.keep_every - remainder
        raise UsageError(
            f"--config.run.keep_every={run.keep_every}: no multiple of run.checkpoint_every_steps "
            f"({run.checkpoint_every_steps}), so most of these steps are not saved: take "
            f"{lower} or {lower + run.checkpoint_every_steps}"
        )


def _check_together(config: ConfigDict) -> None:
    method, row = config.method, METHODS[config.method.name]
    for option in row.options:
        if option not in method:
            raise UsageError(
                f"--config.method.name={method.name}: reads method.{option}, which this config "
                f"lacks; use --config=configs/{method.name}.py"
            )
    target = row.target if method.target == "auto" else method.target
    _check_extras(config, target, row)
    _check_sources(config, target, row)
    if row.check:
        options = {option: method[option] for option in row.options}
        try:
            row.check(
                num_views=method.num_views,
                batch_size=config.data.batch_size,
                target=target,
                stop_gradient=method.stop_gradient,
                sources=method.sources,
                has_local_views=config.views.num_local > 0,
                has_cutmix=config.views.cutmix_probability > 0,
                num_prototypes=config.model.num_prototypes,
                **options,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    _check_backbone(config.model, config.views)
    _check_microbatches(config)
    _check_bn_groups(config)
    _check_keep_every(config.run)
    if config.eval.online_linear and config.views.cutmix_probability:
        raise UsageError(
            f"--config.eval.online_linear=True: cannot be had together with CutMix "
            f"(views.cutmix_probability is {config.views.cutmix_probability}), whose views are of "
            "two images: set one of them to 0"
        )
    if config.views.jitter[3] > 0.5:
        raise UsageError(
            f"--config.views.jitter={config.views.jitter}: the fourth, the hue's, is at most 0.5"
        )
    if len(config.views.mean) != len(config.views.std):
        raise UsageError(
            f"--config.views.mean={config.views.mean}: needs as many numbers as views.std "
            f"({len(config.views.std)}), one a channel"
        )


def _check_extras(config: ConfigDict, target: str, row: Method) -> None:
    """Checks what a loss is not defined for in every method."""
    method, views = config.method, config.views
    asked = {
        "local_views": (f"views.num_local={views.num_local}", views.num_local > 0, "0"),
        "cutmix": (
            f"views.cutmix_probability={views.cutmix_probability}",
            views.cutmix_probability > 0,
            "0",
        ),
        "ema_positive": (f"method.target={target}", target == "ema_positive", "ema"),
    }
    for extra, (what, is_asked, mend) in asked.items():
        if is_asked and extra not in row.extras:
            able = [name for name, other in METHODS.items() if extra in other.extras]
            key = what.partition("=")[0]
            raise UsageError(
                f"--config.{what}: {method.name} has no definition for it; set "
                f"--config.{key}={mend}, or take {', '.join(able)}"
            )
    if views.num_local and views.cutmix_probability:
        raise UsageError(
            f"--config.views.cutmix_probability={views.cutmix_probability}: cannot be had together "
            f"with local views (views.num_local is {views.num_local}): set one of them to 0"
        )
    if views.cutmix_probability and target == "online" and not method.stop_gradient:
        raise UsageError(
            "--config.method.stop_gradient=False: with CutMix an online target is a pass of its "
            "own without gradient; leave it True, or set --config.views.cutmix_probability=0"
        )


def _check_sources(config: ConfigDict, target: str, row: Method) -> None:
    """Checks that the method has sources to select."""
    method = config.method
    if method.sources == "all":
        return
    if row.select is None:
        able = [name for name, other in METHODS.items() if other.select]
        raise UsageError(
            f"--config.method.sources={method.sources}: every view is a source of {method.name}; "
            f"set --config.method.sources=all, or take {', '.join(able)}"
        )
    if target == "online" and not method.stop_gradient:
        raise UsageError(
            "--config.method.stop_gradient=False: the targets of selected sources are a pass of "
            "its own without gradient; leave it True, or set --config.method.sources=all"
        )


def _check_microbatches(config: ConfigDict) -> None:
    """Checks that a batch can be cut into microbatches of two images or more."""
    number, batch_size = config.optim.num_microbatches, config.data.batch_size
    if number > 1 and (batch_size % number or batch_size < 2 * number):
        fitting = [n for n in range(1, batch_size // 2 + 1) if batch_size % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - number))
        raise UsageError(
            f"--config.optim.num_microbatches={number}: must divide data.batch_size, {batch_size}, "
            f"into parts of two images or more; set --config.optim.num_microbatches={nearest}"
        )


def _check_bn_groups(config: ConfigDict) -> None:
    """Checks that a batch, or each of its microbatches, can be cut into BatchNorm's groups."""
    images = config.model.bn_group_images
    together = config.data.batch_size // config.optim.num_microbatches
    if images and (images < 2 or together % images):
        fitting = [n for n in range(2, together + 1) if together % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - images))
        raise UsageError(
            f"--config.model.bn_group_images={images}: must be 0, or two or more that divide the "
            f"{together} images of a batch or microbatch; set --config.model.bn_group_images="
            f"{nearest}"
        )


def _check_backbone(model: ConfigDict, views: ConfigDict) -> None:
    is_vit = model.backbone in VITS
    for key, plain, is_meant in (
        ("norm", "batch", not is_vit),
        ("weight_standardization", False, not is_vit),
        ("freeze_patches", False, is_vit),
        ("drop_path", 0.0, is_vit),
    ):
        if model[key] != plain and not is_meant:
            raise UsageError(
                f"--config.model.{key}={model[key]}: {model.backbone} has no such thing; set "
                f"--config.model.{key}={plain} or take another --config.model.backbone"
            )
    sizes = {"size": views.size} | ({"local_size": views.local_size} if views.num_local else {})
    for key, size in sizes.items():
        if is_vit and size % model.patch_size:
            nearest = max(round(size / model.patch_size), 1) * model.patch_size
            raise UsageError(
                f"--config.views.{key}={size}: must be a multiple of model.patch_size, "
                f"{model.patch_size}; set --config.views.{key}={nearest} or "
                f"--config.model.patch_size={_largest_divisor(size, model.patch_size)}"
            )
    if model.norm == "group" and model.width % model.norm_groups:
        raise UsageError(
            f"--config.model.norm_groups={model.norm_groups}: must divide model.width, "
            f"{model.width}, the channels of the first stage; set --config.model.norm_groups="
            f"{_largest_divisor(model.width, model.norm_groups)}"
        )


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is at most a limit."""
    return max(n for n in range(1, min(number, limit) + 1) if number % n == 0)


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy in which every "auto", and a 0 for it, is what it means for the method."""
    config = config.copy_and_resolve_references()
    row = METHODS[config.method.name]
    if config.method.target == "auto":
        config.method.target = row.target
    if config.method.predictor == "auto":
        config.method.predictor = row.predictor
    if row.own_values:
        options = {option: config.method[option] for option in row.options}
        for option, value in row.own_values(width=output_width(config.model), **options).items():
            config.method[option] = config.method[option] or value
    return config


def view_recipe(views: ConfigDict) -> ViewRecipe:
    """The views of `config.views`, as the step takes them."""
    return ViewRecipe(**views.to_dict())


def as_json(config: ConfigDict) -> str:
    """The record of a run: its config as JSON, keys in order."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_record(record: dict[str, Any]) -> ConfigDict:
    """The config of a run's record; JSON's lists are tuples again."""
    return ConfigDict(_with_tuples(record))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def differences(config: ConfigDict, record: dict[str, Any]) -> list[str]:
    """Says where a config and a run's record differ, "key (theirs there, ours here)" each."""
    ours = flat(json.loads(as_json(config)))
    theirs = flat(record)
    missing = "none"
    return [
        f"{key} ({theirs.get(key, missing)} there, {ours.get(key, missing)} here)"
        for key in [*ours, *(key for key in theirs if key not in ours)]
        if not _same(ours.get(key, missing), theirs.get(key, missing))
    ]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return a == b
