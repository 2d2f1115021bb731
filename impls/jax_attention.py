"""JAX on the CPU: `jax.nn.dot_product_attention`, compiled by XLA ahead of the call."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import packages
from .api import Implementation, RefusedError, Tensors
from .limits import Device, Limits, one_of
from .problem import AttentionProblem
from .registry import register


@register
class JaxAttention(Implementation):
    """Forward only. Arrays of JAX are immutable, so that inputs are copied, and prepared anew when they change.

    `is_causal` is aligned top-left, so that rectangular causal problems get an explicit bottom-right mask.
    """

    name = "jax"
    summary = "jax.nn.dot_product_attention on the CPU, compiled by XLA"
    package = "jax"
    layout = "BSHD"
    traced = False
    copies_inputs = True
    limits = Limits(
        devices=one_of("cpu", source="this wrapper compiles for XLA's CPU client"),
        passes=one_of("forward", source="this wrapper: torch cannot differentiate through JAX"),
    )

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device and the package."""
        missing = not packages.has_module("jax") or not packages.has_module("jaxlib")
        reasons = ("jax is not installed: pip install 'attnbench[cpu]'",) if missing else ()
        return (*super().unavailable(device), *reasons)

    def from_torch(self, tensor: Any) -> Any:
        """A copy as JAX's own array."""
        jax = _jax()
        return jax.numpy.array(jax.dlpack.from_dlpack(tensor.detach()), copy=True)

    def as_torch(self, output: Any) -> Any:
        """The output's memory as a torch tensor."""
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(output)

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Compile for these shapes; a call ends when its result is there."""
        jax = _jax()
        mask = None
        if problem.is_rectangular_causal:
            mask = jax.numpy.tri(problem.seq_q, problem.seq_kv, problem.causal_offset, dtype=bool)[None, None]

        def attention(query: Any, key: Any, value: Any) -> Any:
            return jax.nn.dot_product_attention(
                query, key, value, mask=mask, scale=problem.softmax_scale, is_causal=problem.is_square_causal,
                implementation="xla",
            )  # fmt: skip

        try:
            compiled = jax.jit(attention).lower(*tensors).compile()
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            # Which products a CPU has is told by XLA alone: in these words, or "The precision ... is not supported".
            if "support" not in str(error):
                raise
            raise RefusedError(f"XLA refuses: {' '.join(str(error).split())}") from error

        def call() -> Any:
            return compiled(*tensors).block_until_ready()

        return call

    def backend(self, operators: frozenset[str]) -> str | None:
        """The versions of the package and its compiler, and the threads that XLA was given."""
        versions = f"jax {packages.version('jax')}, jaxlib {packages.version('jaxlib')}"
        return f"{versions} xla, {os.environ['NPROC']} threads"


def _jax() -> Any:
    """JAX with as many threads as torch; XLA reads that once, when its CPU client starts."""
    import torch

    os.environ["NPROC"] = str(torch.get_num_threads())
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    return jax
