"""How a problem is computed: the dtype of products, the softmax and the blocks, by what this machine does faster."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..api import RefusedError
from ..problem import AttentionProblem
from .blocks import DIRECT_ROWS_OF_ALL_HEADS, ONE_BLOCK_SCORES, TALL_CAUSAL_ROWS, Blocks, Limits
from .precision import (
    aligned_is_faster,
    bears_exponentials,
    exp2_is_faster,
    exp_is_faster,
    fastest,
    ones_are_faster,
    padded_is_faster,
    tall_is_faster,
    turns,
    widens,
)

#: Where no maximum is taken off the scores, parts of a row's keys add up at no cost: of so many keys, and with such a part of a
#: thread's bytes for a matrix of scores, that these stay in a core's own cache. To call a smaller part than this takes too much
#: of its time: then it has all of those bytes, in the third level. Threads that share a head have as much of it as their own
#: caches hold, and all of its keys where these are so few; in the third level they have no more than one thread. There so many
#: times those bytes do as well if they hold all scores at once.
UNSHIFTED_KEYS, UNSHIFTED_PART, LEAST_UNSHIFTED_BYTES, WHOLE_FACTOR = 512, 4, 2**20, 2
#: Values are read to see whether they are ordinary: in float32 that pays where there are so many times more scores than
#: elements to read. What it takes besides is as long as so many elements.
SCORES_PER_ELEMENT, ELEMENTS_MORE = 3, 2**16
#: An unshifted sum in 16 bits is rounded before it is divided: beside the rounding of so many weights that is little.
LEAST_KEYS = 16
#: To look at a score takes as long as to read so many elements for the bound.
LOOKS_PER_ELEMENT = 2
#: All 16-bit scores are one block, computed as it comes, if threads' caches hold them; under a causal mask, which hides half of
#: them in vain, a part of those bytes. To copy keys and values, so that rows may be padded, pays of so many.
HIDDEN_COST, LEAST_PADDED_SCORES = 2, 2**19


@dataclass(frozen=True)
class Method:
    """One way to compute attention. `operands` is the dtype of what is multiplied, `products` of the results and between them.

    `turns` products of queries: keys times query. `unshifted` takes no maximum off the scores before it takes their
    exponentials, forwards: it gives up where they are not small; those are powers of two if `base_2`. `sums_in_product` takes
    their sums from the product with the values, beside which are columns of ones. `looks` at every score, and gives up at a
    large one.
    """

    operands: torch.dtype
    products: torch.dtype
    forward: Blocks
    backward: Blocks
    turns: bool = False
    unshifted: bool = False
    base_2: bool = False
    looks: bool = False
    sums_in_product: bool = False

    @property
    def exponential(self) -> Callable[..., Tensor]:
        """What is taken of scores over `unit`: exp(s) = exp2(s / log 2)."""
        return torch.exp2 if self.base_2 else torch.exp

    @property
    def unit(self) -> float:
        """What scores are over before `exponential` is taken of them."""
        return math.log(2) if self.base_2 else 1.0

    @cached_property
    def is_direct(self) -> bool:
        """Whether forward is few blocks of all heads, computed as they come, of keys and values as they are, or converted."""
        return self.forward.is_few and self.operands == self.products and not (self.turns or self.sums_in_product)

    def is_by_matrix(self, device: torch.device) -> bool:
        """Whether threads take whole matrices of a product.

        MKL gives them to threads, as softmax and exp whole rows: where each has rows of one head, scores stay in the cache of
        the core that wrote them. oneDNN, in 16 bits, does so itself.
        """
        return device.type == "cpu" and self.products.itemsize > 2 and self.forward.threads > 1

    @property
    def keeps_sums(self) -> bool:
        """Whether backward needs the sums of rows that forward takes, since it has exponentials where else a softmax is.

        Without a need not where `out` is rounded: it would be kept unrounded as well.
        """
        has_exponentials = self.unshifted and self.products.itemsize > 2 and not self.backward.converts
        return self.backward.cuts_keys or has_exponentials


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why: `fast` for scores that are small, `safe` for any; they may be the same."""

    fast: Method
    safe: Method
    why: str


def choose(
    problem: AttentionProblem, dtype: torch.dtype, device: torch.device, limits: Limits,
    *, products: str, softmax: str, padding: str,
) -> Choice:  # fmt: skip
    """The faster method here, where `products`, `softmax` and `padding` are "auto", else the one asked for.

    Errors: `RefusedError` where 16-bit products are asked for what needs float32.
    """
    wide = torch.promote_types(dtype, torch.float32)
    rows = problem.group_size * problem.seq_q
    chosen = {"own": dtype, "float32": wide}.get(products) or fastest(dtype, device, rows)

    def method(operands: torch.dtype, of: torch.dtype) -> Method:
        asked = {"always": True, "never": False}.get(padding)
        pads = padded_is_faster(of, device) if asked is None else asked
        aligns = aligned_is_faster(of, device) if asked is None else asked and of.itemsize == 2 and device.type == "cpu"
        is_own, is_tall = operands == of, tall_is_faster(of, device)
        make = partial(
            Blocks.of, problem, replace(limits, causal_rows=TALL_CAUSAL_ROWS) if is_tall else limits, of.itemsize,
            converts=operands != dtype, pads=is_own and pads, aligns=is_own and aligns,
        )  # fmt: skip
        # Backward gained nothing by fewer rows in trials.
        return Method(operands, of, _forward(make, limits, of.itemsize), make(), turns(of, device, rows))

    safe, fast = method(wide, wide), method(chosen, chosen)
    if products == "auto" and softmax != "unshifted" and not safe.forward.cuts_keys and widens(dtype, device):
        mixed = method(dtype, wide)
        return Choice(mixed, mixed, f"{_name(wide)} products of {_name(dtype)}, as tensor cores make them")
    if chosen != wide and (need := _need_of_16_bits(fast, limits, softmax)):
        if products == "own":
            raise RefusedError(f"products own: needs {need}")
        fast = safe
    is_free = products == "auto" and device.type == "cpu" and dtype != wide
    why = f"{_name(fast.products)} products, {'faster here' if is_free else 'as asked or needed'}"
    if fast.forward.pads:
        why += "; scores padded"
    if fast == safe:
        pays = _pays(problem)
        unshifted = _unshifted(fast, problem, limits)
    else:
        # Here a fused softmax needs a look at the scores too.
        is_short = _has_few_scores(problem)
        pays = not is_short and _can_be_unshifted(fast)
        unshifted = replace(fast, unshifted=True)
        if products == "own":
            safe = fast
        else:
            fast = replace(fast, looks=is_short)
    if softmax == "unshifted" or (softmax == "auto" and pays):
        sums_in_product = (
            not unshifted.is_direct and unshifted.forward.copies and ones_are_faster(unshifted.products, device)
        )
        if softmax == "unshifted" or exp_is_faster(unshifted.products, device, sums=not sums_in_product):
            base_2 = exp2_is_faster(unshifted.products, device)
            fast = replace(unshifted, sums_in_product=sums_in_product, base_2=base_2)
            why += f"; softmax unshifted where scores are small, of {'powers of two' if base_2 else 'exponentials'}"
    return Choice(fast, safe, why)


def _forward(make: Callable[..., Blocks], limits: Limits, item_bytes: int) -> Blocks:
    """Blocks of the forward pass: of fewer rows if they are few then, computed as they come; in 16 bits all, if that is small."""
    if item_bytes > 2:
        usual, direct = make(), make(causal_rows=DIRECT_ROWS_OF_ALL_HEADS)
        is_small = usual.has_one_row_block and usual.most_scores <= ONE_BLOCK_SCORES
        return direct if direct.is_few and not is_small else usual
    if limits.thread_bytes is None:
        return make()
    cached = limits.threads * limits.thread_bytes
    usual = make(head_bytes=cached)
    whole = replace(usual, rows=usual.seq_q)
    rows = whole.group * whole.rows
    scores = whole.heads * rows * whole.seq_kv
    if scores < LEAST_PADDED_SCORES:
        whole = replace(whole, pads=False, aligns=False)
    most_bytes = min(limits.workspace_bytes, cached // (HIDDEN_COST if whole.causal else 1))
    is_small = rows <= limits.rows and scores * item_bytes <= most_bytes
    return whole if is_small and whole.is_few else usual


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _need_of_16_bits(fast: Method, limits: Limits, softmax: str) -> str:
    """What 16-bit products would need and is not given, and why."""
    if fast.forward.cuts_keys:
        return f"seq_kv <= key_block ({limits.keys}); sums over parts of the keys need float32"
    if softmax == "unshifted" and not _can_be_unshifted(fast):
        return f"softmax auto or fused; {_name(fast.products)} sums need the range of e**32, and {LEAST_KEYS} keys"
    return ""


def _can_be_unshifted(fast: Method) -> bool:
    return bears_exponentials(fast.products) and fast.forward.seq_kv >= LEAST_KEYS


def _unshifted(method: Method, problem: AttentionProblem, limits: Limits) -> Method:
    """This method without maxima: parts of a row's keys need nothing of each other then, and are so small that cache holds them.

    Backward as well, unless it takes a softmax of whole rows.
    """
    heads, item_bytes = problem.batch * problem.heads_kv, method.products.itemsize
    sharing = max(1, limits.threads // heads)
    keys, of_thread, of_head = min(limits.keys, UNSHIFTED_KEYS), limits.thread_bytes, None
    if of_thread is not None:
        cached, needed = of_thread // UNSHIFTED_PART, problem.group_size * problem.seq_q * problem.seq_kv * item_bytes
        is_few = sharing > 1
        if cached >= LEAST_UNSHIFTED_BYTES:
            of_thread = cached
        elif sharing == 1 and heads * needed <= WHOLE_FACTOR * limits.threads * of_thread:
            of_thread, is_few = WHOLE_FACTOR * of_thread, True
        of_head = max(of_thread, sharing * cached)
        keys = limits.keys if is_few and needed <= of_head else min(limits.keys, UNSHIFTED_KEYS * of_head // of_thread)

    def parts(matrices: int) -> Blocks:
        of_part = replace(limits, keys=keys, thread_bytes=matrices * of_thread if of_thread else None)
        return Blocks.of(problem, of_part, item_bytes, converts=method.forward.converts, head_bytes=of_head)

    unshifted = replace(method, forward=parts(1), unshifted=True)
    return replace(unshifted, backward=parts(2)) if unshifted.keeps_sums else unshifted


def _has_few_scores(problem: AttentionProblem) -> bool:
    """Whether to look at the scores themselves takes less than to bound them by the norms of queries and keys."""
    rows = problem.group_size * problem.seq_q
    return LOOKS_PER_ELEMENT * rows * problem.seq_kv <= (rows + problem.seq_kv) * problem.head_dim


def _pays(problem: AttentionProblem) -> bool:
    """Whether there are so many scores that what is spared at each makes up for reading the values."""
    heads = problem.batch * problem.heads_kv
    read = heads * problem.seq_kv * problem.head_dim
    return heads * problem.group_size * problem.pairs > SCORES_PER_ELEMENT * (read + ELEMENTS_MORE)
