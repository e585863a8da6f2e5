"""Compiling what runs a network: the one place that knows of gsg_jax.models.cpu."""

from collections.abc import Callable

import jax

from gsg_jax.models.cpu import compiler_options, on_cpu


def jit_network(function: Callable, mesh: jax.sharding.Mesh, **options) -> Callable:
    """Returns `jax.jit(function, **options)`, with what a CPU does its own way.

    Args:
      function: pure; runs networks of gsg_jax.models.
      mesh: the devices that it is compiled for. What is done otherwise on a CPU follows from them
        and not from the devices of this process.
      options: of `jax.jit`.
    """
    return jax.jit(on_cpu(function, mesh), compiler_options=compiler_options(mesh), **options)
