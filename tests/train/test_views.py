"""The views of a step: each draw has a key of its own, and sources are selected by image."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gsg_jax.train import views as views_module
from gsg_jax.train.views import Views, draw_views, only_sources
from tests.train.steps import experiment_of


def test_whole_and_local_views_and_patches_are_drawn_from_keys_of_their_own(monkeypatch):
    drawn = {}

    def stub(name, result):
        def draw(images, key, *rest, **options):
            drawn[name] = (images, key, rest, options)
            return result

        monkeypatch.setattr(views_module, name, draw)

    stub("make_views", "whole")
    stub("make_local_views", "local")
    stub("cutmix", ("mixed", "partner", "share"))
    key = jax.random.key(5)

    multi_crop = experiment_of("byol", views={"num_local": 3, "local_size": 8})
    views = draw_views(multi_crop, ("images", "crops"), key)
    assert views == Views("whole", "whole", "local", None)
    images, local_key, rest, options = drawn["make_local_views"]
    assert (images, rest, options) == ("crops", (multi_crop.views,), {"first_number": 2})
    assert drawn["make_views"] == ("images", key, (multi_crop.views, 2), {})
    of_images = jax.random.split(key, 16)  # what whole views are drawn from
    assert not any(local_key == other for other in of_images)

    mixed = draw_views(experiment_of("byol", views={"cutmix_probability": 0.5}), "images", key)
    assert (mixed.whole, mixed.online, mixed.local) == ("whole", "mixed", None)
    assert tuple(mixed.mix) == ("partner", "share")
    images, mix_key, rest, _ = drawn["cutmix"]
    assert (images, rest) == ("whole", (2, 0.5))
    assert not any(mix_key == other for other in (*of_images, local_key))


def test_the_selected_views_of_each_image_are_taken():
    rng = np.random.default_rng(0)
    online = rng.normal(size=(5, 4, 3, 2, 1))  # [B, G, ...]
    sources = rng.integers(0, 4, size=(2, 5))  # [S, B]
    views = Views("whole", jnp.asarray(online.reshape(20, 3, 2, 1), jnp.float32), None, None)
    selected = only_sources(views, jnp.asarray(sources))
    expected = [online[image, view] for image in range(5) for view in sources[:, image]]
    chex.assert_trees_all_close(selected.online, np.float32(expected))
    assert selected.whole == "whole" and (selected.sources == sources).all()
