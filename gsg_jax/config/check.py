"""Checks of the values of a config, alone and together: an error names value, limit and fix."""

import difflib
from typing import Any

from ml_collections import ConfigDict

from gsg_jax.config import evaluations
from gsg_jax.config.keys import KEYS, option_keys
from gsg_jax.config.load import FIXED_KEYS, flat, is_number, nearest_key
from gsg_jax.console import UsageError
from gsg_jax.methods import METHODS, Key, Method
from gsg_jax.methods.guided_sources import PAIRING_OF_VIEWS
from gsg_jax.models.vit import VITS, num_heads


def check_pretraining(config: ConfigDict, *, checks_method: bool = True) -> None:
    """Checks the values of a pretraining config, alone and together.

    Args:
      config: the config.
      checks_method: False for the record of a run whose custom method is missing and not needed.

    Raises:
      UsageError: names the key, its value, the limit and the fix.
    """
    leaves = flat(config)
    for key in KEYS:
        if key not in leaves:
            raise UsageError(
                f"the config lacks {key}: start from gsg_jax.config.recipes.pretraining"
            )
    known = KEYS | option_keys(config.method.name)
    if not checks_method:
        leaves = {key: value for key, value in leaves.items() if not key.startswith("method.")}
    for key in leaves:  # a user's config file may have a misspelt key
        if key not in known and key not in FIXED_KEYS:
            raise UsageError(f"the config has {key}: there is no such key{nearest_key(key, known)}")
    _check_values(leaves, known)
    if checks_method:
        _check_method(config)
    _check_together(config)


def check_evaluation(config: ConfigDict) -> None:
    """Checks the values of an evaluation's config.

    Raises:
      UsageError: names the key, its value, the limit and the fix.
    """
    leaves = flat(config)
    if leaves.get("views.crop_area") == ():  # as in pretraining
        del leaves["views.crop_area"]
    _check_values(leaves, evaluations.KEYS)
    for key, like in (("eval.knn_k", "(20,200)"), ("few_label.num_images", "(1,5,10)")):
        if not all(isinstance(number, int) for number in leaves.get(key, ())):
            raise UsageError(f"--config.{key}={leaves[key]}: takes whole numbers, such as {like}")
    if config.pretrained and config.get("features"):
        raise UsageError(
            f"--config.features={config.features}: cannot be combined with "
            f"--config.pretrained={config.pretrained}: give one of them"
        )
    if not config.pretrained and not config.get("features"):
        alone = ", or --config.features the folder of embeddings" if "features" in config else ""
        raise UsageError(
            f"--config.pretrained is empty: give the --workdir of a pretraining run{alone}"
        )


def _check_values(leaves: dict[str, Any], keys: dict[str, Key]) -> None:
    for key, value in leaves.items():
        if key in keys:
            _check_value(key, value, keys[key])


def _check_value(key: str, value: Any, row: Key) -> None:
    if row.kind is str:
        if row.limits and value not in tuple(row.limits):
            near = difflib.get_close_matches(str(value), row.limits, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            choices = ", ".join(choice or "''" for choice in row.limits)
            own = ", or give the file that registers it as --plugin=FILE"
            more = own if isinstance(row.limits, dict) else ""
            raise UsageError(f"--config.{key}={value}: {hint}take one of {choices}{more}")
    elif row.kind is tuple:
        if row.limits:
            _check_tuple(key, value, row)
    elif row.limits:
        low, high = row.limits
        if not is_number(value) or not low <= value <= high:  # NaN is in no range
            raise UsageError(f"--config.{key}={value}: must be a number from {low:g} to {high:g}")
    # A user's config file may hold a wrong type; a command line cannot.
    kind = {bool: "true or false", int: "a whole number", str: "a text"}.get(row.kind)
    if kind and type(value) is not row.kind:
        example = f", such as {row.default!r}" if row.has_default else ""
        raise UsageError(f"--config.{key}={value}: takes {kind}{example}")


def check_warmup(config: ConfigDict) -> None:
    """Raises UsageError if the warm-up takes more epochs than the run has."""
    warmup, run = config.optim.warmup_epochs, config.run
    if not run.get("num_steps", 0) and warmup > run.num_epochs:
        raise UsageError(
            f"--config.optim.warmup_epochs={warmup:g}: longer than the run, run.num_epochs is "
            f"{run.num_epochs}: take fewer, or more --config.run.num_epochs"
        )


def _check_tuple(key: str, values: tuple, row: Key) -> None:
    low, high = row.limits
    if not isinstance(values, tuple) or not all(map(is_number, values)):
        raise UsageError(
            f"--config.{key}={values}: takes numbers in parentheses, such as (0.2,1.0)"
        )
    if (row.length and len(values) != row.length) or not values:
        raise UsageError(f"--config.{key}={values}: takes {row.length or 'one or more'} numbers")
    if not all(low <= v <= high for v in values):
        raise UsageError(f"--config.{key}={values}: each must be from {low:g} to {high:g}")
    if row.is_ordered and values[0] > values[1]:
        raise UsageError(f"--config.{key}={values}: the first must not exceed the second")


def _check_method(config: ConfigDict) -> None:
    """Checks that the config has its method's options, and that the method can be so configured."""
    method, row = config.method, METHODS[config.method.name]
    for option in row.options:
        if option not in method:
            raise UsageError(
                f"--config.method.name={method.name}: reads method.{option}, which this config "
                f"lacks; use --config={method.name}, or your own config of this method"
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
                is_guided=method.sources_by == "guided",
                num_prototypes=config.model.num_prototypes,
                **options,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error


def _check_together(config: ConfigDict) -> None:
    check_warmup(config)
    _check_backbone(config.model, config.views)
    _check_microbatches(config)
    _check_bn_groups(config)
    _check_keep_every(config.run)
    if config.eval.online_linear and config.views.cutmix_probability:
        raise UsageError(
            "--config.eval.online_linear=True: cannot be combined with CutMix "
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
    """Checks that the method's loss is defined for what the config asks."""
    method, views = config.method, config.views
    share, sources_by = views.cutmix_probability, method.sources_by
    asked = {
        "local_views": ("views.num_local", views.num_local, views.num_local > 0, "0"),
        "cutmix": ("views.cutmix_probability", share, share > 0, "0"),
        "ema_positive": ("method.target", target, target == "ema_positive", "ema"),
        "guided": ("method.sources_by", sources_by, sources_by == "guided", "method"),
    }
    for extra, (key, value, is_asked, fix) in asked.items():
        if is_asked and extra not in row.extras:
            able = [name for name, other in METHODS.items() if extra in other.extras]
            raise UsageError(
                f"--config.{key}={value}: {method.name} has no definition for it; set "
                f"--config.{key}={fix}, or take {', '.join(able)}"
            )
    if views.num_local and share:
        raise UsageError(
            f"--config.views.cutmix_probability={share}: cannot be combined "
            f"with local views (views.num_local is {views.num_local}): set one of them to 0"
        )
    if share and target == "online" and not method.stop_gradient:
        raise UsageError(
            "--config.method.stop_gradient=False: with CutMix an online target is a pass of its "
            "own without gradient; leave it True, or set --config.views.cutmix_probability=0"
        )


def _check_sources(config: ConfigDict, target: str, row: Method) -> None:
    """Checks that the method can select sources."""
    method = config.method
    if method.sources_by == "guided" and method.num_views not in PAIRING_OF_VIEWS:
        raise UsageError(
            f"--config.method.num_views={method.num_views}: method.sources_by=guided takes 2 views "
            "(an image's reference is the next one) or 4 (it is a random one): set one of them"
        )
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
    """Checks that a batch splits into microbatches of two images or more."""
    number, batch_size = config.optim.num_microbatches, config.data.batch_size
    if number > 1 and (batch_size % number or batch_size < 2 * number):
        nearest = _nearest_divisor(batch_size, number, high=batch_size // 2)
        raise UsageError(
            f"--config.optim.num_microbatches={number}: must divide data.batch_size, {batch_size}, "
            f"into parts of two images or more; set --config.optim.num_microbatches={nearest}"
        )


def _check_bn_groups(config: ConfigDict) -> None:
    """Checks that a batch, or each of its microbatches, splits into BatchNorm's groups."""
    images = config.model.bn_group_images
    together = config.data.batch_size // config.optim.num_microbatches
    if images and (images < 2 or together % images):
        nearest = _nearest_divisor(together, images, 2, together)
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
        ("num_heads", 0, is_vit),
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
                f"--config.model.patch_size={_nearest_divisor(size, model.patch_size)}"
            )
    if is_vit and VITS[model.backbone][0] % num_heads(model):
        width = VITS[model.backbone][0]
        raise UsageError(
            f"--config.model.num_heads={model.num_heads}: must divide the width of "
            f"{model.backbone}, {width}; set --config.model.num_heads="
            f"{_nearest_divisor(width, model.num_heads)}"
        )
    if model.norm == "group" and model.width % model.norm_groups:
        raise UsageError(
            f"--config.model.norm_groups={model.norm_groups}: must divide model.width, "
            f"{model.width}, the channels of the first stage; set --config.model.norm_groups="
            f"{_nearest_divisor(model.width, model.norm_groups)}"
        )


def _nearest_divisor(number: int, wanted: int, low: int = 1, high: int = 0) -> int:
    """The divisor of a number nearest to `wanted`, from low to high, or up to `wanted`."""
    fitting = [n for n in range(low, min(number, high or wanted) + 1) if number % n == 0]
    return min(fitting, key=lambda n: abs(n - wanted))


def _check_keep_every(run: ConfigDict) -> None:
    if remainder := run.keep_every % run.checkpoint_every_steps:
        lower = run.keep_every - remainder
        raise UsageError(
            f"--config.run.keep_every={run.keep_every}: no multiple of run.checkpoint_every_steps "
            f"({run.checkpoint_every_steps}), so most of these steps are not saved: take "
            f"{lower} or {lower + run.checkpoint_every_steps}"
        )
