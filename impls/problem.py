"""The attention problem: what is to be computed, and how much work it is. No torch, no timing.

Shape letters: B batch, Hq query heads, Hkv key/value heads, Sq and Skv sequence lengths, D head dimension.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Dtype = Literal["float32", "bfloat16", "float16"]
Pass = Literal["forward", "backward", "forward_backward"]
FlopConvention = Literal["exact", "papers"]

ELEMENT_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FullMask(_Frozen):
    """Every query sees every key."""

    kind: Literal["full"]

    def visible_keys(self, query: int, seq_q: int, seq_kv: int) -> range:
        """The keys that query row `query` attends to."""
        return range(seq_kv)

    def pairs(self, seq_q: int, seq_kv: int) -> int:
        """Attended (query, key) pairs of one head."""
        return seq_q * seq_kv

    def refusal(self, seq_q: int, seq_kv: int) -> str | None:
        """Why this mask has no meaning for these lengths; None where it has."""
        return None

    def __str__(self) -> str:
        return self.kind


class CausalMask(_Frozen):
    """Query i sees key j when j <= i + (Skv - Sq): aligned bottom-right, as flash-attn >= 2.1 does."""

    kind: Literal["causal"]

    def visible_keys(self, query: int, seq_q: int, seq_kv: int) -> range:
        """The keys that query row `query` attends to."""
        return range(query + seq_kv - seq_q + 1)

    def pairs(self, seq_q: int, seq_kv: int) -> int:
        """Attended (query, key) pairs of one head: Sq (2 Skv - Sq + 1) / 2."""
        return seq_q * (2 * seq_kv - seq_q + 1) // 2

    def refusal(self, seq_q: int, seq_kv: int) -> str | None:
        """Rows that see nothing have no softmax: some libraries return 0 there, others NaN."""
        if seq_q > seq_kv:
            return (
                f"causal with more queries ({seq_q}) than keys ({seq_kv}) leaves rows that see nothing; "
                "use seq_q <= seq_kv"
            )
        return None

    def __str__(self) -> str:
        return self.kind


def _from_word(mask: object) -> object:
    return {"kind": mask} if isinstance(mask, str) else mask


#: A union tagged by `kind`; a word stands for a mask without parameters.
Mask = Annotated[Annotated[FullMask | CausalMask, Field(discriminator="kind")], BeforeValidator(_from_word)]
MASK_KINDS: tuple[str, ...] = ("full", "causal")
FULL, CAUSAL = FullMask(kind="full"), CausalMask(kind="causal")


class AttentionProblem(_Frozen):
    """out = softmax(scale * q k^T, masked) v.

    Shapes: q `[B, Hq, Sq, D]`, k and v `[B, Hkv, Skv, D]`, out `[B, Hq, Sq, D]`; Hq is a multiple of Hkv.
    Errors: `ValueError` (pydantic's) for sizes below one, Hq not a multiple of Hkv, a mask that leaves empty rows.
    """

    batch: int = Field(default=1, ge=1)
    heads_q: int = Field(ge=1)
    heads_kv: int = Field(ge=1)
    seq_q: int = Field(ge=1)
    seq_kv: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    dtype: Dtype = "float32"
    mask: Mask = FULL
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heads_q % self.heads_kv:
            raise ValueError(
                f"{self.heads_q} query heads cannot share {self.heads_kv} key/value heads evenly; "
                "query heads must be a multiple of key/value heads"
            )
        refusal = self.mask.refusal(self.seq_q, self.seq_kv)
        if refusal:
            raise ValueError(refusal)
        return self

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head: 1 is multi-head, Hq is multi-query, between is grouped-query."""
        return self.heads_q // self.heads_kv

    @property
    def softmax_scale(self) -> float:
        """The factor on the scores: 1/sqrt(D) unless the problem says otherwise."""
        return 1.0 / math.sqrt(self.head_dim) if self.scale is None else self.scale

    @property
    def is_causal(self) -> bool:
        """Whether the mask is causal (bottom-right)."""
        return self.mask.kind == "causal"

    @property
    def is_square_causal(self) -> bool:
        """Causal where top-left and bottom-right are one alignment; a single query sees every key and is none."""
        return self.is_causal and 1 < self.seq_q == self.seq_kv

    @property
    def is_rectangular_causal(self) -> bool:
        """Causal where a mask that is aligned top-left would be another; a single query is none."""
        return self.is_causal and 1 < self.seq_q < self.seq_kv

    @property
    def causal_offset(self) -> int:
        """Skv - Sq: how many keys the first query of a causal problem sees beyond its own."""
        return self.seq_kv - self.seq_q

    @property
    def pairs(self) -> int:
        """Attended (query, key) pairs of one head, exact per element."""
        return self.mask.pairs(self.seq_q, self.seq_kv)

    @property
    def query_shape(self) -> tuple[int, int, int, int]:
        """`[B, Hq, Sq, D]`, also the output's shape."""
        return (self.batch, self.heads_q, self.seq_q, self.head_dim)

    @property
    def key_shape(self) -> tuple[int, int, int, int]:
        """`[B, Hkv, Skv, D]`, also the value's shape."""
        return (self.batch, self.heads_kv, self.seq_kv, self.head_dim)

    def flops(self, passes: Pass, convention: FlopConvention = "exact") -> int:
        """Floating-point operations of one pass, a multiply-add counting two.

        exact: forward `2 B Hq P 2D`, backward `2 B Hq P 5D` (five products, one of them recomputed), P the attended pairs.
        papers: forward `4 B Hq Sq Skv D`, halved for causal, backward 2.5 times that (FlashAttention-2, section 4.1).
        """
        if convention == "papers":
            forward = 4 * self.batch * self.heads_q * self.seq_q * self.seq_kv * self.head_dim
            forward = forward // 2 if self.is_causal else forward
            backward = forward * 5 // 2
        else:
            products = 2 * self.batch * self.heads_q * self.pairs * self.head_dim
            forward, backward = 2 * products, 5 * products
        return {"forward": forward, "backward": backward, "forward_backward": forward + backward}[passes]

    def forward_bytes(self) -> int:
        """Compulsory memory traffic of a forward pass: q, k and v read once, out written once."""
        query, key = math.prod(self.query_shape), math.prod(self.key_shape)
        return ELEMENT_BYTES[self.dtype] * 2 * (query + key)

    def score_bytes(self) -> int:
        """The bytes of one explicit score matrix over all heads, in the problem's dtype: what naive attention allocates."""
        return ELEMENT_BYTES[self.dtype] * self.batch * self.heads_q * self.seq_q * self.seq_kv

    def __str__(self) -> str:
        heads = _pair(self.heads_q, self.heads_kv)
        seq = _pair(self.seq_q, self.seq_kv)
        scale = "" if self.scale is None else f"-scale{self.scale:g}"
        return f"b{self.batch}-h{heads}-s{seq}-d{self.head_dim}-{self.dtype}-{self.mask}{scale}"


def _pair(query: int, key: int) -> str:
    return str(query) if query == key else f"{query}/{key}"
