"""Positives: what each view of the online branch is pulled toward."""

import jax
import jax.numpy as jnp

from gsg_jax.methods.method import CutMix


def positives(
    t: jax.Array, num_views: int, mix: CutMix | None, picks: jax.Array | None = None
) -> jax.Array:
    """The target rows that each view follows, as one weighted mean per view.

    A global view follows the mean of the other global views' targets (its sibling's, if there are
    two), a local view the mean of all global ones. A view that carries a patch of another image
    follows both images' targets, each by its share of the view (CutMix). A loss that is linear in
    a unit target row, such as the negative cosine, can be taken against this mean.

    Args:
      t: rows of the target branch, unit vectors or distributions, [G, B, D], G at least 2.
      num_views: V, G global views first, local views after.
      mix: the patches of CutMix, or None.
      picks: how often each view is a guided source, [G, B], or None: see `guided_positives`.

    Returns:
      Rows [V, B, D].

    Source: multi-crop: Caron et al., NeurIPS 2020 (arXiv 2006.09882); CutMix: Yun et al., ICCV 2019
    (arXiv 1905.04899); both with one shared gradient: Tao et al., CVPR 2022 (arXiv 2112.05141).
    """
    if picks is not None:
        return guided_positives(t, num_views, mix, picks)
    num_global = t.shape[0]
    total = jnp.sum(t, axis=0, keepdims=True)
    rows = t[::-1] if num_global == 2 else (total - t) / (num_global - 1)
    if num_views > num_global:
        local = jnp.broadcast_to(total / num_global, (num_views - num_global, *t.shape[1:]))
        rows = jnp.concatenate([rows, local])
    return mixed(rows, mix)


def guided_positives(
    t: jax.Array, num_views: int, mix: CutMix | None, picks: jax.Array
) -> jax.Array:
    """The rows that the views follow if guided stop-gradient picks the sources.

    A source follows its sibling (of views 0 and 1, or of 2 and 3), a local view the targets of all
    its image's sources, and other global views none. Rows are scaled so that in the mean over all
    of them each pick counts once: 1 / (1 + L) for the source, and as much for each local view.

    Args:
      t: as in `positives`, G = 2 or 4.
      num_views: V, with L = V - G local views.
      mix: the patches of CutMix, or None.
      picks: how often each view is a source, [G, B], 2 B in all.

    Returns:
      Rows [V, B, D].
    """
    siblings = t.reshape(-1, 2, *t.shape[1:])[:, ::-1].reshape(t.shape)
    rows = mixed(siblings, mix) * picks[..., None]
    num_local = num_views - t.shape[0]
    local = jnp.broadcast_to(jnp.sum(rows, axis=0), (num_local, *t.shape[1:]))
    of_a_pick = num_views / (2 * (1 + num_local))  # V B rows in the mean, 2 B picks
    return jnp.concatenate([rows, local]) * of_a_pick


def mixed(rows: jax.Array, mix: CutMix | None) -> jax.Array:
    """Rows [V, B, D], each replaced by its mean with its partner's, weighted by the share."""
    if mix is None:
        return rows
    return (1 - mix.share) * rows + mix.share * rows[:, mix.partner]
