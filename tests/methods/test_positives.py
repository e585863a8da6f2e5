"""What each view follows, against a loop over views and images."""

import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods.method import CutMix
from gsg_jax.methods.positives import positives


@pytest.mark.parametrize(
    ("num_global", "num_local", "share"), [(2, 0, None), (4, 0, 0.35), (2, 5, 1.0), (3, 1, 0.0)]
)
def test_positives_by_a_loop(num_global, num_local, share):
    rng = np.random.default_rng(num_global + num_local)
    t = rng.normal(size=(num_global, 6, 3)).astype(np.float32)
    partner = rng.permutation(6)
    mix = None if share is None else CutMix(jnp.asarray(partner), jnp.float32(share))
    rows = positives(jnp.asarray(t), num_global + num_local, mix)
    assert rows.shape == (num_global + num_local, 6, 3)
    for v in range(num_global + num_local):
        followed = [t[g] for g in range(num_global) if g != v]
        for n in range(6):
            own, partners = (np.mean([x[m] for x in followed], axis=0) for m in (n, partner[n]))
            expected = own if share is None else (1 - share) * own + share * partners
            np.testing.assert_allclose(rows[v, n], expected, rtol=1e-5, atol=1e-6)
