"""Exact attention in blocks of queries and keys, at memory linear in sequence length.

Sources: Rabe & Staats 2021, arXiv:2112.05682 (blocks, recomputation in backward); Milakov & Gimelshein 2018,
arXiv:1805.02867 (online softmax).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..api import Implementation, Option, Tensors
from ..problem import AttentionProblem
from ..registry import register


@register
class Chunked(Implementation):
    """The in-repo memory-efficient implementation; block sizes are options, in rows of queries and keys."""

    name = "chunked"
    summary = "in-repo exact attention in blocks, linear memory"
    package = "attnbench"
    options: ClassVar[Mapping[str, Option]] = {"query_block": Option(256), "key_block": Option(1024)}

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Bind the block sizes; everything else is arithmetic."""
        from .blocks import Blocks
        from .kernel import ChunkedAttention

        blocks = Blocks.of(problem, int(self.option("query_block")), int(self.option("key_block")))
        scale = problem.softmax_scale

        def call() -> Any:
            return ChunkedAttention.apply(*tensors, scale, blocks)  # type: ignore[no-untyped-call]

        return call
