"""The buffers that blocks share, and the rows, keys and values of a block as its products take them. Legend: kernel.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block, Blocks


class _Copy(NamedTuple):
    """Keys or values of some heads as operands. The copy of one block serves the next, if that has its heads and keys."""

    heads: slice
    keys: slice
    tensor: Tensor


class Workspace:
    """What the blocks that are visited use in turn: buffers, and copies of what products cannot take as it is."""

    def __init__(
        self, blocks: Blocks, most_scores: int, operands: torch.dtype, products: torch.dtype, device: torch.device
    ) -> None:
        self._blocks, self._operands, self._products, self._device = blocks, operands, products, device
        self._most_scores = most_scores
        self._is_onednn = device.type == "cpu" and operands.itemsize == 2
        self._buffers: dict[str, Tensor] = {}
        self._copies: dict[str, _Copy] = {}

    def rows(self, name: str, tensor: Tensor, block: Block) -> Tensor:
        """These rows as `[n, G r, D]` in the dtype of operands: a view where that can be, else a copy."""
        mine = part_of(tensor, block)
        taken = self.viewed(mine, self._operands)
        return self.buffer(name, mine.shape, self._operands).copy_(mine).flatten(1, 2) if taken is None else taken

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
        copy = self._copies.get(name)
        if copy is not None and copy.heads == heads and copy.keys == keys:
            return copy.tensor
        taken, count = narrowed(narrowed(tensor, 0, heads), 1, keys), keys.stop - keys.start
        is_operand = taken.dtype == self._operands and (taken.is_contiguous() or not self._is_onednn)
        if is_operand and rows == count and not ones:
            return taken if taken is tensor else _alone(taken)
        copied = self.buffer(name, (taken.shape[0], rows, taken.shape[2] + ones), self._operands)
        filled = narrowed(copied, 1, slice(0, count))
        narrowed(filled, 2, slice(0, taken.shape[2])).copy_(taken)
        fill(filled, taken.shape[2], 1.0)
        if rows > count:
            copied[:, count:].zero_()
        self._copies[name] = _Copy(heads, keys, copied)
        return copied

    def operand(self, name: str, tensor: Tensor) -> Tensor:
        """This tensor, or a copy in the dtype of operands."""
        if tensor.dtype == self._operands:
            return tensor
        return self.buffer(name, tensor.shape, self._operands).copy_(tensor)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None, most: int = 0) -> Tensor:
        """A buffer of this shape, in the dtype of products if no other is said; what it held before is lost.

        It is made for `most` elements, if later ones will be larger.
        """
        held, count = self._buffers.get(name), math.prod(shape)
        if held is None or held.numel() < count:
            # Of this shape if it may be: a view less.
            size = (most,) if most > count else shape
            held = self._buffers[name] = torch.empty(size, dtype=dtype or self._products, device=self._device)
        return held if held.shape == shape else held.view(-1)[:count].view(shape)

    def scores(self, name: str, heads: int, rows: int, keys: slice) -> Tensor:
        """A buffer for a score of each row and key `[n, G r, p]`, padding included."""
        return self.buffer(name, (heads, rows, self._blocks.columns(keys)), most=self._most_scores)


def _alone(matrices: Tensor) -> Tensor:
    """These matrices; if that is one, of its own strides alone: they tell oneDNN that it need not copy it."""
    return matrices if len(matrices) > 1 else matrices[0].unsqueeze(0)


def part_of(tensor: Tensor, block: Block) -> Tensor:
    """A block's heads and rows `[n, G, r, ...]` of a tensor `[N, G, Sq, ...]`."""
    return narrowed(narrowed(tensor, 0, block.heads), 2, block.rows)


def narrowed(tensor: Tensor, dim: int, to: slice) -> Tensor:
    """A slice of one dimension, unless it is all of it: a view takes a third of a small product's time."""
    return tensor if to.stop - to.start == tensor.shape[dim] else tensor[(slice(None),) * dim + (to,)]


def fill(matrix: Tensor, count: int, value: float) -> None:
    """Give the padding of rows of so many columns this value."""
    if count < matrix.shape[-1]:
        matrix[..., count:].fill_(value)
