"""The views of a step: drawn from the step's key, and cut down to the selected sources."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gsg_jax.data.augment import cutmix, make_local_views, make_views
from gsg_jax.methods.method import CutMix
from gsg_jax.train.state import CUTMIX_STREAM, LOCAL_STREAM, Experiment


class Views(NamedTuple):
    """The views of a step; rows are ordered by image, then by view.

    Attributes:
      whole: global views, [B x G, size, size, C].
      online: the global views that the online branch sees, with patches if CutMix is on.
      local: local views, [B x L, local_size, local_size, C], or None.
      mix: what CutMix has done, or None.
      sources: indices of the selected views, [S, B], or None for all; `online` then has only
        these.
    """

    whole: jax.Array
    online: jax.Array
    local: jax.Array | None
    mix: CutMix | None
    sources: jax.Array | None = None


@jax.named_scope("views")
def draw_views(
    experiment: Experiment, images: jax.Array | tuple[jax.Array, jax.Array], key: jax.Array
) -> Views:
    """Draws the views of a step by the experiment's recipe."""
    recipe, num_views = experiment.views, experiment.num_views
    images, local_images = images if isinstance(images, tuple) else (images, images)
    whole = make_views(images, key, recipe, num_views)
    local, mix, online = None, None, whole
    if recipe.num_local:
        local_key = jax.random.fold_in(key, LOCAL_STREAM)
        local = make_local_views(local_images, local_key, recipe, first_number=num_views)
    if recipe.cutmix_probability:
        cutmix_key = jax.random.fold_in(key, CUTMIX_STREAM)
        online, *mix = cutmix(whole, cutmix_key, num_views, recipe.cutmix_probability)
        mix = CutMix(*mix)
    return Views(whole, online, local, mix)


def only_sources(views: Views, sources: jax.Array) -> Views:
    """Reduces `online` to the views whose indices are in sources [S, B]: [B x S, size, size, C]."""
    batch_size, shape = sources.shape[1], views.online.shape[1:]
    of_image = views.online.reshape(batch_size, -1, *shape)  # [B, G, size, size, C]
    index = sources.T.reshape(batch_size, -1, *(1,) * len(shape))
    selected = jnp.take_along_axis(of_image, index, axis=1)
    return views._replace(online=selected.reshape(-1, *shape), sources=sources)
