"""What one CPU computes its own way: convolutions, BatchNorm's sums, ReLUs, and their gradients.

The networks of gsg_jax.models are plain Flax. While a function is traced for a mesh of one CPU, a
few of their methods are replaced by the functions of this folder. TPUs, GPUs, and several CPU
devices (which stand in for those) run plain XLA. docs/performance.md says what each path gives.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from gsg_jax.devices.mesh import is_cpu
from gsg_jax.models.conv import Conv
from gsg_jax.models.cpu.conv import convolve
from gsg_jax.models.cpu.relu import stored_relu
from gsg_jax.models.cpu.sums import moments_in_stages, sum_in_stages
from gsg_jax.models.norm import BatchNorm, normalize_views
from gsg_jax.models.resnet import Relu

COMPILER_OPTIONS = {
    # YNNPACK's convolutions run at half the speed of XLA's own.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # Leaves optimization barriers in place, so that what they store is not computed again.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


def on_cpu(function: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """Returns the function, traced with this folder's paths if the mesh is one CPU."""
    if not is_one_cpu(mesh):
        return function

    @functools.wraps(function)
    def traced(*arguments):
        with nn.intercept_methods(_own_path):
            return function(*arguments)

    return traced


def is_one_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Whether the mesh is one CPU, and JAX has no other device on any host."""
    return is_cpu(mesh) and mesh.size == 1 == jax.device_count()


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str]:
    """Returns the compiler options of networks on a CPU, or {} for other devices.

    Options that this version of XLA does not know are left out.
    """
    if not is_cpu(mesh):
        return {}
    return {name: value for name, value in COMPILER_OPTIONS.items() if _is_known(name, value)}


def _own_path(next_fun, arguments, options, context):
    """Interceptor of Flax methods."""
    match context.module, context.method_name:
        case Conv(), "convolve":
            return convolve(*arguments)
        case BatchNorm(epsilon=epsilon), "normalize":
            # One view after another: XLA would merge a sum of sums into a pass over all pixels.
            return normalize_views(*arguments, epsilon, moments_in_stages, sum_in_stages, sum)
        case Relu(), "__call__":
            return stored_relu(*arguments)
    return next_fun(*arguments, **options)


@functools.cache
def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
