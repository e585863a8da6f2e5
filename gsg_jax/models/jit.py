"""Compiles what runs a network: the one place that knows of gsg_jax.models.cpu."""

from collections.abc import Callable

import jax

from gsg_jax.models.cpu import compiler_options, on_cpu


def jit_network(function: Callable, mesh: jax.sharding.Mesh, **options) -> Callable:
    """Returns `jax.jit(function, **options)`, with a CPU's own paths and compiler options.

    Args:
      function: pure; runs networks of gsg_jax.models.
      mesh: the devices that it is compiled for, which may be another machine's. CPUs get the
        compiler options; the own paths are taken only if it is one CPU and JAX has no other device.
      options: of `jax.jit`.
    """
    return jax.jit(on_cpu(function, mesh), compiler_options=compiler_options(mesh), **options)
