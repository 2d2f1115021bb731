"""Exact attention in blocks of queries and keys, at memory linear in sequence length.

Sources: Rabe & Staats 2021, arXiv:2112.05682 (blocks, recomputation in backward); Milakov & Gimelshein 2018,
arXiv:1805.02867 (online softmax).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..api import Implementation, Option, OptionValue, RefusedError, Tensors
from ..problem import AttentionProblem
from ..registry import register

#: A GPU hides the launches of small blocks badly, and has a larger cache: its workspace is this many times a CPU's.
CUDA_FACTOR = 16


@register
class Chunked(Implementation):
    """The in-repo memory-efficient implementation.

    Options: the most rows and keys of a block, the most MiB of its scores, and the dtype of products: `auto` takes the
    inputs' own where this machine multiplies it faster and scores are small enough for it, else float32.
    """

    name = "chunked"
    summary = "in-repo exact attention in blocks, linear memory"
    package = "attnbench"
    revision = 3
    options: ClassVar[Mapping[str, Option]] = {
        "query_block": Option(512),
        "key_block": Option(262144),
        "workspace_mib": Option(8),
        "products": Option("auto", ("auto", "own", "float32")),
    }

    def __init__(self, **given: OptionValue) -> None:
        super().__init__(**given)
        self._products = ""

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Choose the dtype of products and the blocks; everything else is arithmetic."""
        import torch

        from .blocks import Blocks, Limits
        from .kernel import LargeScoresError, attend
        from .precision import are_small, fastest

        dtype, device = tensors.query.dtype, tensors.query.device
        factor = CUDA_FACTOR if device.type == "cuda" else 1
        mib = factor * int(self.option("workspace_mib"))
        limits = Limits(int(self.option("query_block")), int(self.option("key_block")), mib * 2**20)

        def blocks_in(products: torch.dtype) -> Blocks:
            return Blocks.of(problem, limits, products.itemsize, converts=products != dtype)

        wide = torch.promote_types(dtype, torch.float32)
        asked = self.option("products")
        chosen = {"own": dtype, "float32": wide}.get(str(asked)) or fastest(dtype, device)
        if blocks_in(chosen).cuts_keys and chosen != wide:
            if asked == "own":
                raise RefusedError(
                    f"products own: needs seq_kv <= key_block ({limits.keys}); an online softmax needs float32"
                )
            chosen = wide
        blocks, wide_blocks, scale = blocks_in(chosen), blocks_in(wide), problem.softmax_scale
        why = "faster here" if asked == "auto" and device.type == "cpu" and dtype != wide else "as asked or needed"
        self._products = f"{str(chosen).removeprefix('torch.')} products, {why}"

        def call() -> Any:
            return attend(*tensors, scale, blocks, chosen)

        def wide_call() -> Any:
            return attend(*tensors, scale, wide_blocks, wide)

        def call_if_small() -> Any:
            return call() if are_small(tensors.query, tensors.key, scale) else wide_call()

        def call_and_look() -> Any:
            try:
                return attend(*tensors, scale, blocks, chosen, look=True)
            except LargeScoresError:
                return wide_call()

        if asked != "auto" or chosen == wide:
            return call
        # To bound the scores reads every key; where there are few queries it is less to look at the scores themselves.
        return call_and_look if problem.group_size * problem.seq_q < problem.head_dim else call_if_small

    def backend(self, operators: frozenset[str]) -> str | None:
        """The dtype of its products, and why."""
        return self._products
