"""A custom method in one file, which is its config too: alignment and uniformity.

    gsg-jax examples/own_method.py[:RECIPE] [--workdir=DIR]

Source: Wang & Isola, ICML 2020 (arXiv 2005.10242), section 4.
"""

import jax.numpy as jnp

import gsg_jax
from gsg_jax.config import recipes
from gsg_jax.methods import Key, Method
from gsg_jax.methods.similarity import normalize


def alignment_and_uniformity(outputs, memory, key, *, stop_gradient, uniformity_weight, sharpness):
    """Views of an image lie close together, and all images spread over the sphere."""
    del key, stop_gradient  # nothing is random, and the gradient reaches both views
    z = normalize(outputs.z)  # [2, B, D]
    alignment = jnp.mean(jnp.sum((z[0] - z[1]) ** 2, axis=-1))
    squared = 2 - 2 * z @ jnp.swapaxes(z, 1, 2)  # [2, B, B], distances between images
    others = 1 - jnp.eye(z.shape[1])
    spread = jnp.log(jnp.mean(jnp.exp(-sharpness * squared), axis=(1, 2), where=others > 0))
    loss = alignment + uniformity_weight * jnp.mean(spread)
    return loss, memory, {"attraction": alignment, "alignment": alignment}


OPTIONS = {
    "uniformity_weight": Key(1.0, "of the spread over the sphere", (0, 100)),
    "sharpness": Key(2.0, "of the potential between two images", (0.01, 100)),
}
METHOD = Method(alignment_and_uniformity, target="online", predictor="none", options=OPTIONS)
gsg_jax.register_method("alignment_uniformity", METHOD)


def get_config(recipe="default"):
    """Returns the config of a recipe, one of gsg_jax.config.recipes.RECIPES."""
    config = recipes.pretraining(recipe)
    config.method.update({"name": "alignment_uniformity", "stop_gradient": False})
    return config
