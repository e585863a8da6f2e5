"""What is done otherwise on a CPU: TPUs and GPUs run plain XLA."""

from functools import cache

import jax

# docs/performance.md has what each of them gives.
CPU_OPTIONS = {
    # The convolutions of YNNPACK run at half the speed of XLA's own.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # Leaves optimization barriers in place, so that what they store is not computed anew.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


def is_one_cpu() -> bool:
    """Whether the program runs on one CPU device; several of them stand in for TPUs or GPUs."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def loops_are_slow() -> bool:
    """Whether short loops are better written out: within one a CPU convolves ten times slower."""
    return jax.default_backend() == "cpu"


@cache
def compiler_options() -> dict[str, str]:
    """The options that `jax.jit` is to compile large programs with; none but on a CPU.

    An XLA that no longer knows an option is asked without it.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in CPU_OPTIONS.items() if _is_known(name, value)}


def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
