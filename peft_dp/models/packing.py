"""Several sentences in one row: no padding, and attention that keeps each sentence to itself.

Short sentences waste a machine even without padding, for attention then is very many
tiny products. So the sentences of a batch are laid end to end in rows of one width:
positions start anew with each, a mask keeps attention within it, and
what each gives is what it gives alone. See `docs/performance.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

STEP = 32
"""Widths of rows are its multiples: few shapes, for a library compiles its bfloat16 products for each."""


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the tokens of B examples are in R rows of W places.

    Attributes:
        owner: Example whose token a place holds, B where it holds none [R, W].
        starts: Place of each example's first token, counted through all rows [B].
        lengths: Number of tokens of each example [B].
        reads: Place of each example's read-out [B].
        asking: The examples of a row side by side, B where there are no more [R, S].
        slots: Place of each example in `asking`, counted through all rows [B].
        longest: Number of tokens of the longest example, known without waiting for a device.
    """

    owner: Tensor
    starts: Tensor
    lengths: Tensor
    reads: Tensor
    asking: Tensor
    slots: Tensor
    longest: int

    @cached_property
    def same(self) -> Tensor:
        """Whether two places of a row hold tokens of one example [R, W, W]."""
        return self.owner[:, :, None] == self.owner[:, None, :]

    @cached_property
    def mine(self) -> Tensor:
        """Whether a place of a row holds a token of the example in a slot [R, S, W]."""
        return self.asking[:, :, None] == self.owner[:, None, :]

    @cached_property
    def asked(self) -> Tensor:
        """As `mine`, and all places for an empty slot, since attention to none has no finite value."""
        return self.mine | (self.asking[:, :, None] == len(self.starts))

    def holds(self, values: Tensor) -> bool:
        """Whether values are of tokens, [R, W, ...] with at least one axis more."""
        return values.dim() > 2 and values.shape[:2] == self.owner.shape

    @cached_property
    def member(self) -> Tensor:
        """As `mine`, to multiply with [R, S, W]."""
        return self.mine.float()

    def by_slot(self, values: Tensor) -> Tensor:
        """Sum over the tokens of the example in each slot [R, S, n] of values [R, W, n]; `slots` says which are whose.

        One product, which adds up in the same order each time, where sums by index do not on a GPU.
        """
        member = self.member if values.dtype == torch.float32 else self.member.to(values.dtype)
        return torch.bmm(member, values)

    def total(self, values: Tensor) -> Tensor:
        """Sum over the tokens of each example [B, ...] of values [R, W, ...]."""
        sums = values.new_zeros(len(self.starts) + 1, *values.shape[2:])
        return sums.index_add_(0, self.owner.flatten(), values.flatten(0, 1))[:-1]

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Sum over the tokens of each slot's example of left right^T [R, S, m, n], of [R, W, m] and [R, W, n]."""
        if left.shape[2] > right.shape[2]:
            return self.products(right, left).mT
        each = (left[:, None] * self.mine[..., None]).mT.flatten(1, 2)  # [R, S m, W]
        return (each @ right).view(len(each), -1, left.shape[2], right.shape[2])

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the tokens of each example [B, d] of values [R, W, d]."""
        return self.total(values) / self.lengths[:, None]

    def to_tokens(self, values: Tensor) -> Tensor:
        """Values [B, ...] at each token of their example [R, W, ...]; at a place without a token, anything finite."""
        places = self.owner.clamp(max=len(self.starts) - 1)
        return values.index_select(0, places.flatten()).view(*places.shape, *values.shape[1:])

    def read(self, values: Tensor) -> Tensor:
        """What is at the read-out of each example [B, ...] of values [R, W, ...]."""
        return values.flatten(0, 1).index_select(0, self.reads)

    def apart(self, values: Tensor) -> Tensor:
        """Values [R, W, ...] with a row for each example [B, T, ...], zeros behind its last token."""
        at = torch.arange(self.longest, device=self.starts.device)
        behind = at >= self.lengths[:, None]
        places = (self.starts[:, None] + at).masked_fill(behind, 0)
        found = values.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, *values.shape[2:])
        return found.masked_fill(behind.view(*behind.shape, *[1] * (values.dim() - 2)), 0)


_CURRENT: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def use(packing: Packing | None) -> Iterator[None]:
    """Makes it the packing of what passes through a model within the block."""
    token = _CURRENT.set(packing)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Packing | None:
    """The packing of what passes through a model now."""
    return _CURRENT.get()


def of(values: Tensor) -> Packing | None:
    """The packing that values [R, W, ...] within a model are in; None where the first axis is that of the examples."""
    packing = current()
    return packing if packing is not None and packing.holds(values) else None


def over_tokens(values: Tensor, states: Tensor) -> Tensor:
    """A vector [h] or one for each example [B, h], in a shape that can be added to states of their tokens."""
    if values.dim() == 1:
        return values
    packing = of(states)
    return values[:, None] if packing is None else packing.to_tokens(values)


def rows(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """Which examples share a row, and the width of a row: of the multiples of `STEP` that of fewest places.

    Longest first, each into the fullest row that has room for it.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    total = sum(lengths)
    least = -(-lengths[order[0]] // STEP) * STEP
    best: tuple[int, list[list[int]], int] | None = None
    for width in range(least, 2 * least + 1, STEP):
        if best is None or -(-total // width) * width < best[0]:
            found = _filled(order, lengths, width)
            if best is None or len(found) * width < best[0]:
                best = len(found) * width, found, width
    assert best is not None
    return best[1:]


def _filled(order: list[int], lengths: Sequence[int], width: int) -> list[list[int]]:
    found: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]  # free places -> rows
    for i in order:
        free = next((free for free in range(lengths[i], width + 1) if with_room[free]), None)
        if free is None:
            row, free = len(found), width
            found.append([])
        else:
            row = with_room[free].pop()
        found[row].append(i)
        with_room[free - lengths[i]].append(row)
    return found
