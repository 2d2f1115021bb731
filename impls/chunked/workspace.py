"""The buffers that blocks share, and the rows, keys and values of a block as its products take them. Legend: kernel.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block, Blocks
from .calls import Calls


class _Taken(NamedTuple):
    """Keys or values of some heads as operands. What one block took serves the next, if that has its heads and keys."""

    heads: slice
    keys: slice
    tensor: Tensor


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
        self._buffers: dict[str, tuple[Tensor, Tensor]] = {}
        self._held: dict[str, _Taken] = {}

    def rows(self, name: str, tensor: Tensor, block: Block) -> Tensor:
        """These rows as `[n, G r, D]` in the dtype of operands: a view where that can be, else a copy."""
        mine = part_of(tensor, block)
        taken = self.viewed(mine, self._operands)
        return self._copied(name, mine).flatten(1, 2) if taken is None else taken

    def viewed(self, part: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Rows `[n, G, r, D]` as `[n, G r, D]`, if they are of this dtype and a product takes them or writes there as they are.

        Rows of several heads that are apart oneDNN copies for each product, and slower than they are copied once.
        """
        if part.dtype != dtype:
            return None
        if part.is_contiguous():
            return _alone(part.flatten(1, 2))
        return part.squeeze(1) if part.shape[1] == 1 and not self._is_onednn else None

    def columns(self, name: str, tensor: Tensor, heads: slice, keys: slice) -> Tensor:
        """Keys or values of a block as the columns of a matrix of scores `[n, w, D]`: a view where they are, else a copy.

        Of several heads in 16 bits a part is copied as well: else oneDNN copies it for each product, and transposed.
        """
        return self._taken(name, tensor, heads, keys, self._blocks.width(keys))

    def terms(self, name: str, tensor: Tensor, heads: slice, keys: slice, *, ones: int = 0) -> Tensor:
        """As `columns`, to be summed with a row of scores as weights `[n, p, D + ones]`: zeros for its padding.

        With `ones` so many columns of them come after the others, for the sum of the weights.
        """
        rows = self._blocks.columns(keys)
        name = name if rows == self._blocks.width(keys) and not ones else f"padded {name}"
        return self._taken(name, tensor, heads, keys, rows, ones)

    def _taken(self, name: str, tensor: Tensor, heads: slice, keys: slice, rows: int, ones: int = 0) -> Tensor:
        held = self._held.get(name)
        if held is None or held.heads != heads or held.keys != keys:
            held = self._held[name] = _Taken(heads, keys, self._taken_anew(name, tensor, heads, keys, rows, ones))
        return held.tensor

    def _taken_anew(self, name: str, tensor: Tensor, heads: slice, keys: slice, rows: int, ones: int) -> Tensor:
        count = keys.stop - keys.start
        taken = tensor if (heads.stop - heads.start, count) == tensor.shape[:2] else tensor[heads, keys]
        is_operand = taken.dtype == self._operands and (taken.is_contiguous() or not self._is_onednn)
        if is_operand and rows == count and not ones:
            return taken if taken is tensor else _alone(taken)
        copied = self.buffer(name, (taken.shape[0], rows, taken.shape[2] + ones), self._operands)
        filled = narrowed(copied, 1, slice(0, count))
        self._calls.add(narrowed(filled, 2, slice(0, taken.shape[2])).copy_, taken)
        fill(self._calls, filled, taken.shape[2], 1.0)
        if rows > count:
            self._calls.add(copied[:, count:].zero_)
        return copied

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
        memory, last = self._buffers.get(name, (None, None))
        if last is not None and last.shape == shape:
            return last
        count = math.prod(shape)
        if memory is None or memory.numel() < count:
            # Of this shape if it may be: a view less.
            size = (most,) if most > count else shape
            memory = torch.empty(size, dtype=dtype or self._products, device=self._device)
        last = memory if memory.shape == shape else memory.view(-1)[:count].view(shape)
        self._buffers[name] = memory, last
        return last

    def scores(self, name: str, heads: int, rows: int, keys: slice) -> Tensor:
        """A buffer for a score of each row and key `[n, G r, p]`, padding included."""
        return self.buffer(name, (heads, rows, self._blocks.columns(keys)), most=self._most_scores)


def _alone(matrices: Tensor) -> Tensor:
    """These matrices; if that is one, of its own strides alone: they tell oneDNN that it need not copy it."""
    return matrices if matrices.shape[0] > 1 else matrices[0].unsqueeze(0)


def part_of(tensor: Tensor, block: Block) -> Tensor:
    """A block's heads and rows `[n, G, r, ...]` of a tensor `[N, G, Sq, ...]`."""
    heads, rows = block.heads, block.rows
    is_all = heads.stop - heads.start == tensor.shape[0] and rows.stop - rows.start == tensor.shape[2]
    return tensor if is_all else tensor[heads, :, rows]


def narrowed(tensor: Tensor, dim: int, to: slice) -> Tensor:
    """A slice of one dimension, unless it is all of it: a view takes a third of a small product's time."""
    return tensor if to.stop - to.start == tensor.shape[dim] else tensor[(slice(None),) * dim + (to,)]


def fill(calls: Calls, matrix: Tensor, count: int, value: float) -> None:
    """Lay out that the padding of rows of so many columns is given this value."""
    if count < matrix.shape[-1]:
        calls.add(matrix[..., count:].fill_, value)
