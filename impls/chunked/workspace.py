"""The buffers that blocks share, and the rows, keys and values of a block as its products take them. Legend: kernel.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block, Blocks
from .calls import Calls

#: So many views of keys and values, and of buffers, are held at most for later blocks.
MOST_VIEWS = 256
#: Copies of keys and values of so many bytes are held, where products do not take them as they are: later blocks need not copy.
MOST_COPIED_BYTES = 8 * 2**20


#: What some keys or values are known by: their name, heads and keys.
_Key = tuple[str, int, int, int, int]


class _Taken(NamedTuple):
    """Keys or values of some heads as products take them: `[n, p, D]`, with what is beside and behind them, and turned.

    What one block took serves the next, if that has its heads and keys.
    """

    terms: Tensor
    columns: Tensor


class Workspace:
    """What the blocks that are visited use in turn: buffers, and copies of what products cannot take as it is.

    Copies are made by `calls`, in their turn.
    """

    def __init__(
        self, blocks: Blocks, most_scores: int, operands: torch.dtype, products: torch.dtype, device: torch.device,
        calls: Calls,
    ) -> None:  # fmt: skip
        self._calls = calls
        self._blocks, self._operands, self._products, self._device = blocks, operands, products, device
        self._most_scores = most_scores
        self._is_onednn = device.type == "cpu" and operands.itemsize == 2
        self._buffers: dict[str, Tensor] = {}
        self._shaped: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._taken: dict[_Key, _Taken] = {}
        self._copies: dict[str, _Key] = {}
        self._copied_bytes = 0
        self._by_thread: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    def converted(self, name: str, tensor: Tensor) -> Tensor:
        """All keys or values in the dtype of operands, if copies of both may be held: else each block copies its part of them."""
        size = tensor.numel() * self._operands.itemsize
        if tensor.dtype == self._operands or 2 * size > MOST_COPIED_BYTES:
            return tensor
        self._copied_bytes += size
        return self._copied(f"all of {name}", tensor)

    def rows(self, name: str, tensor: Tensor, block: Block) -> Tensor:
        """These rows as `[n, G r, D]` in the dtype of operands: a view where that can be, else a copy."""
        mine = part_of(tensor, block)
        taken = self.viewed(mine, self._operands)
        return without_groups(self._copied(name, mine)) if taken is None else taken

    def viewed(self, part: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Rows `[n, G, r, D]` as `[n, G r, D]`, if they are of this dtype and a product takes them or writes there as they are.

        Rows of several heads that are apart oneDNN copies for each product, and slower than they are copied once.
        """
        if part.dtype != dtype:
            return None
        if part.is_contiguous():
            return _alone(without_groups(part))
        return part if part.dim() == 3 and not self._is_onednn else None

    def columns(self, name: str, tensor: Tensor, heads: slice, keys: slice) -> Tensor:
        """Keys or values of a block as the columns of a matrix of scores `[n, D, w]`: a view where they are, else a copy.

        Of several heads in 16 bits a part is copied as well: else oneDNN copies it for each product, and transposed.
        """
        key = (name, heads.start, heads.stop, keys.start, keys.stop)
        return (self._taken.get(key) or self._take(key, tensor, heads, keys, self._blocks.width(keys))).columns

    def terms(self, name: str, tensor: Tensor, heads: slice, keys: slice, *, ones: int = 0) -> Tensor:
        """As `columns`, but to be summed with a row of scores as weights `[n, p, D + ones]`: zeros for its padding.

        With `ones` so many columns of them come after the others, for the sum of the weights.
        """
        rows = self._blocks.columns(keys)
        name = name if rows == self._blocks.width(keys) and not ones else f"padded {name}"
        key = (name, heads.start, heads.stop, keys.start, keys.stop)
        return (self._taken.get(key) or self._take(key, tensor, heads, keys, rows, ones)).terms

    def _take(self, key: _Key, tensor: Tensor, heads: slice, keys: slice, rows: int, ones: int = 0) -> _Taken:
        count = keys.stop - keys.start
        part = tensor if (heads.stop - heads.start, count) == tensor.shape[:2] else tensor[heads, keys]
        if rows > count or ones or part.dtype != self._operands or (self._is_onednn and not part.is_contiguous()):
            part = self._copied_part(key, part, rows, ones)
        elif part is not tensor:
            part = _alone(part)
        if len(self._taken) >= MOST_VIEWS:
            self._taken.clear()
        taken = self._taken[key] = _Taken(part, part.mT)
        return taken

    def _copied_part(self, key: _Key, part: Tensor, rows: int, ones: int) -> Tensor:
        """A copy with so many rows, zeros behind its own, and so many columns of ones."""
        count, dim = part.shape[1:]
        name, first_head, _, first_key, _ = key
        # Under a causal mask heads come in turn, else one after another, and later ones take the place of earlier.
        place = f"{name} of {first_head if self._blocks.causal else 0}, {first_key}"
        if place not in self._copies:
            size = part.shape[0] * rows * (dim + ones) * self._operands.itemsize
            if self._copied_bytes + size > MOST_COPIED_BYTES:
                place = name
            else:
                self._copied_bytes += size
        if place in self._copies:
            self._taken.pop(self._copies[place], None)
        self._copies[place] = key
        copied = self.buffer(place, (part.shape[0], rows, dim + ones), self._operands)
        filled = narrowed(copied, 1, slice(0, count))
        self._calls.add(narrowed(filled, 2, slice(0, dim)).copy_, part)
        fill(self._calls, filled, dim, 1.0)
        if rows > count:
            self._calls.add(copied[:, count:].zero_)
        return copied

    def by_thread(self, matrix: Tensor, *, split: bool) -> Tensor:
        """One matrix `[1, a, b]` as one for each thread: its rows `split` among them, or all of it for each."""
        key = (id(matrix), split)
        if (known := self._by_thread.get(key)) is not None:
            return known[1]
        threads = self._blocks.threads
        view = matrix.view(threads, -1, matrix.shape[2]) if split else matrix.expand(threads, -1, -1)
        if len(self._by_thread) >= MOST_VIEWS:
            self._by_thread.clear()
        # With the matrix, so that no other has its id.
        self._by_thread[key] = matrix, view
        return view

    def operand(self, name: str, tensor: Tensor) -> Tensor:
        """This tensor, or a copy in the dtype of operands."""
        if tensor.dtype == self._operands:
            return tensor
        return self._copied(name, tensor)

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        copied = self.buffer(name, tensor.shape, self._operands)
        self._calls.add(copied.copy_, tensor)
        return copied

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None, most: int = 0) -> Tensor:
        """A buffer of this shape, in the dtype of products if no other is said; what it held before is lost.

        It is made for `most` elements, if later ones will be larger.
        """
        if (shaped := self._shaped.get((name, shape))) is not None:
            return shaped
        memory, count = self._buffers.get(name), math.prod(shape)
        if memory is None or memory.numel() < count:
            # Of this shape if it may be: a view less.
            size = (most,) if most > count else shape
            memory = self._buffers[name] = torch.empty(size, dtype=dtype or self._products, device=self._device)
            self._shaped = {known: view for known, view in self._shaped.items() if known[0] != name}
        if len(self._shaped) >= MOST_VIEWS:
            self._shaped.clear()
        shaped = memory if memory.shape == shape else memory.view(-1)[:count].view(shape)
        self._shaped[name, shape] = shaped
        return shaped

    def scores(self, name: str, heads: int, rows: int, keys: slice) -> Tensor:
        """A buffer for a score of each row and key `[n, G r, p]`, padding included."""
        return self.buffer(name, (heads, rows, self._blocks.columns(keys)), most=self._most_scores)


def _alone(matrices: Tensor) -> Tensor:
    """These matrices; if that is one, of its own strides alone: they tell oneDNN that it need not copy it."""
    return matrices if matrices.shape[0] > 1 else matrices[0].unsqueeze(0)


def part_of(tensor: Tensor, block: Block) -> Tensor:
    """A block's heads and rows `[n, G, r, ...]` of a tensor `[N, G, Sq, ...]`."""
    heads, rows = block.heads, block.rows
    if heads.stop - heads.start == tensor.shape[0] and rows.stop - rows.start == tensor.shape[-2]:
        return tensor
    return tensor[heads, rows] if tensor.dim() == 3 else tensor[heads, :, rows]


def without_groups(part: Tensor) -> Tensor:
    """A part `[n, G, r, ...]` as `[n, G r, ...]`."""
    return part if part.dim() == 3 else part.flatten(1, 2)


def by_group(rows: Tensor, part: Tensor) -> Tensor:
    """Rows `[n, G r, ...]`, or as many in other matrices, in the dimensions of a part of a tensor `[n, G, r, ...]`."""
    return rows if rows.shape[:-1] == part.shape[:-1] else rows.view(*part.shape[:-1], rows.shape[-1])


def narrowed(tensor: Tensor, dim: int, to: slice) -> Tensor:
    """A slice of one dimension, unless it is all of it: a view takes a third of a small product's time."""
    return tensor if to.stop - to.start == tensor.shape[dim] else tensor[(slice(None),) * dim + (to,)]


def fill(calls: Calls, matrix: Tensor, count: int, value: float) -> None:
    """Lay out that the padding of rows of so many columns is given this value."""
    if count < matrix.shape[-1]:
        calls.add(matrix[..., count:].fill_, value)
