"""On a GPU: a step of every method is the CPU's.

JAX_PLATFORMS=cuda,cpu python -m pytest -m extended tests/test_gpu.py tests/train/test_resume.py
"""

import functools

import jax
import numpy as np
import pytest

from gsg_jax.devices.mesh import global_batch, mesh_of, replicated
from gsg_jax.methods import METHODS
from gsg_jax.train.build import jit_step
from gsg_jax.train.state import init_state
from tests.small import images, small_experiment

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX sees no GPU"),
]


def step_on(device, experiment, state):
    """A step on one device: the update of the parameters and the metrics."""
    mesh = mesh_of([device], fsdp=1)
    before = jax.device_put(state, replicated(mesh))
    with jax.default_matmul_precision("highest"):
        after, metrics = jit_step(experiment, mesh)(before, global_batch(mesh, images()))
    updates = jax.tree.map(lambda new, old: np.asarray(new) - old, after.params, state.params)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)]), metrics["loss"]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_a_gpu_is_the_cpu_s(method):
    experiment = small_experiment(method)
    cpu, gpu = jax.devices("cpu")[0], jax.devices("gpu")[0]
    with jax.default_device(cpu):
        init = functools.partial(init_state, experiment, 1)
        state = jax.device_get(jax.jit(init)())
    (wanted, wanted_loss), (update, loss) = (
        step_on(device, experiment, state) for device in (cpu, gpu)
    )
    assert np.linalg.norm(wanted) > 0
    assert np.linalg.norm(update - wanted) < 1e-3 * np.linalg.norm(wanted)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-4, atol=1e-5)
