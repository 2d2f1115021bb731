"""Exact attention in blocks of queries and keys, at memory linear in sequence length.

Sources: Rabe & Staats 2021, arXiv:2112.05682 (blocks, recomputation in backward); Milakov & Gimelshein 2018,
arXiv:1805.02867 (online softmax).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ..api import Implementation, Option, OptionValue, Tensors
from ..problem import AttentionProblem
from ..registry import register

#: So many times the second-level cache of a core are its scores of several heads, and so many bytes where that is small: more are
#: passed through the third level, which cores share, and fewer are done sooner than they are launched.
CACHE_FACTOR, LEAST_CACHED_BYTES = 2, 2 * 2**20
#: A GPU hides the launches of small blocks badly, and has a larger cache: its workspace is this many times a CPU's.
CUDA_FACTOR = 8
#: Its tensor cores want more rows than a CPU: on an H100 training takes 2.4 times as long with 128.
CUDA_CAUSAL_ROWS = 512


@register
class Chunked(Implementation):
    """The in-repo memory-efficient implementation.

    Options: the most rows and keys of a block, the most MiB of its scores, the dtype of products, the softmax, and whether
    rows of 16-bit scores are padded. `auto` takes the inputs' own dtype where this machine multiplies it faster and scores are
    small enough for it, else float32; there it takes exponentials of small scores `unshifted`, as they are, where that is
    faster than torch's `fused` softmax.
    """

    name = "chunked"
    summary = "in-repo exact attention in blocks, linear memory"
    package = "attnbench"
    revision = 20
    options: ClassVar[Mapping[str, Option]] = {
        "query_block": Option(1024),
        "key_block": Option(262144),
        "workspace_mib": Option(16),
        "products": Option("auto", ("auto", "own", "float32")),
        "softmax": Option("auto", ("auto", "fused", "unshifted")),
        "padding": Option("auto", ("auto", "always", "never")),
    }

    def __init__(self, **given: OptionValue) -> None:
        super().__init__(**given)
        self._why = ""

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Choose how to compute it; everything else is arithmetic."""
        import torch

        from .blocks import Limits, second_level_cache_bytes
        from .kernel import attend
        from .method import choose
        from .precision import LargeScoresError, are_small

        query, key, value = tensors
        limits = Limits(
            int(self.option("query_block")), int(self.option("key_block")), int(self.option("workspace_mib")) * 2**20
        )
        if query.device.type == "cpu":
            thread_bytes = max(LEAST_CACHED_BYTES, CACHE_FACTOR * second_level_cache_bytes())
            limits = replace(limits, threads=torch.get_num_threads(), thread_bytes=thread_bytes)
        else:
            limits = replace(limits, workspace_bytes=CUDA_FACTOR * limits.workspace_bytes, causal_rows=CUDA_CAUSAL_ROWS)
        asked = {name: str(self.option(name)) for name in ("products", "softmax", "padding")}
        choice, scale = choose(problem, query.dtype, query.device, limits, **asked), problem.softmax_scale
        fast, safe, self._why = choice.fast, choice.safe, choice.why

        def call() -> Any:
            return attend(query, key, value, scale, fast)

        def safe_call() -> Any:
            return attend(query, key, value, scale, safe)

        def call_if_small() -> Any:
            return call() if are_small(query, key, scale) else safe_call()

        def call_and_look() -> Any:
            try:
                return call()
            except LargeScoresError:
                return safe_call()

        if fast.looks or fast.unshifted:
            return call_and_look
        return call if fast == safe else call_if_small

    def backend(self, operators: frozenset[str]) -> str | None:
        """The dtype of its products and the softmax, and why."""
        return self._why
