"""What a pass leaves of a parameter: its gradient of each example, formed or in a form that needs less.

Each kind gives the gradients (`each`), their square norms, which are never too
short, and adds their weighted sum to a total; it can be narrowed to a mask
(`only`), and to the examples that have a finite gradient (`without`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from peft_dp.models.packing import Packing

FORMED = 2**20
"""Values of the gradients formed at a time where only their norms are kept: about what a processor's cache holds."""


@dataclass(frozen=True)
class Each:
    """A parameter's gradient, formed for each example."""

    gradient: Tensor  # [B, ...], or in a packing [R, S, ...] of its slots
    packing: Packing | None = None

    def each(self) -> Tensor:
        if self.packing is None:
            return self.gradient
        return self.gradient.flatten(0, 1).index_select(0, self.packing.slots)

    def only(self, mask: Tensor) -> Masked:
        return Masked(self.each()[:, mask], mask)

    def without(self, lost: Tensor) -> Each:
        return Each(zeroed(self.each(), lost))

    def square_norm(self) -> Tensor:
        return self.each().flatten(1).square().sum(1)

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        total.view(-1).addmv_(self.each().flatten(1).T, weights)


@dataclass(frozen=True)
class Masked:
    """A parameter's gradient where a mask lets it train, zero elsewhere."""

    entries: Tensor  # [B, K], of the K places the mask lets through
    mask: Tensor

    def each(self) -> Tensor:
        zeros = self.entries.new_zeros(len(self.entries), *self.mask.shape)
        zeros[:, self.mask] = self.entries
        return zeros

    def without(self, lost: Tensor) -> Masked:
        return Masked(zeroed(self.entries, lost), self.mask)

    def square_norm(self) -> Tensor:
        return self.entries.square().sum(1)

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        total[self.mask] += weights @ self.entries


@dataclass(frozen=True)
class Product:
    """A weight whose gradient is sum over t of g_t a_t^T, never formed for one example."""

    a: Tensor  # [B, T, in], or [R, W, in] in a packing
    g: Tensor  # [B, T, out], likewise
    packing: Packing | None = None

    def apart(self) -> Product:
        """The same with a row for each example."""
        if self.packing is None:
            return self
        return Product(self.packing.apart(self.a), self.packing.apart(self.g))

    def each(self) -> Tensor:
        rows = self.apart()
        return torch.einsum("bto,bti->boi", rows.g, rows.a)

    def only(self, mask: Tensor) -> Masked:
        rows, columns = mask.nonzero(as_tuple=True)
        return Masked(_total(self.g[..., rows] * self.a[..., columns], self.packing), mask)

    def without(self, lost: Tensor) -> Product:
        lost = _to_rows(lost, self.packing)
        return replace(self, a=zeroed(self.a, lost), g=zeroed(self.g, lost))

    def square_norm(self) -> Tensor:
        terms = self.a.shape[2] + self.g.shape[2]
        return _gram_sum((self.a @ self.a.mT).mul_(self.g @ self.g.mT), terms, self.packing)

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        a, g, column = self.a, self.g, _column(weights, self.packing)
        a, g = (a * column, g) if a.shape[2] < g.shape[2] else (a, g * column)
        total.addmm_(g.flatten(0, 1).T, a.flatten(0, 1))


@dataclass(frozen=True)
class Rows:
    """An embedding table: row k's gradient is the sum of g_t over the t that look it up."""

    ids: Tensor  # [B, T], or [R, W] in a packing
    g: Tensor  # [B, T, d], likewise
    shape: torch.Size
    packing: Packing | None = None

    def each(self) -> Tensor:
        ids, g = self.ids, self.g
        if self.packing:
            ids, g = self.packing.apart(ids), self.packing.apart(g)
        zeros = g.new_zeros(len(ids), *self.shape)
        return zeros.scatter_add_(1, ids[..., None].expand_as(g), g)

    def only(self, mask: Tensor) -> Masked:
        rows, columns = mask.nonzero(as_tuple=True)
        return Masked(_total((self.ids[..., None] == rows) * self.g[..., columns], self.packing), mask)

    def without(self, lost: Tensor) -> Rows:
        return replace(self, g=zeroed(self.g, _to_rows(lost, self.packing)))

    def square_norm(self) -> Tensor:
        same = self.ids[:, :, None] == self.ids[:, None, :]
        return _gram_sum((self.g @ self.g.mT).mul_(same), self.g.shape[2], self.packing)

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        total.index_add_(0, self.ids.flatten(), (self.g * _column(weights, self.packing)).flatten(0, 1))


@dataclass(frozen=True)
class Behind:
    """A parameter that a weight is computed from, value by value, or a single one behind all values."""

    weight: Product  # with a row for each example
    slope: Tensor  # [out, in], of the weight by the parameter
    shape: torch.Size  # of the parameter

    def each(self) -> Tensor:
        found = self.weight.each() * self.slope
        return found if self.shape == self.slope.shape else found.sum((1, 2)).view(-1, *self.shape)

    def only(self, mask: Tensor) -> Masked:
        return Each(self.each()).only(mask)

    def without(self, lost: Tensor) -> Behind:
        return replace(self, weight=self.weight.without(lost))

    def square_norm(self) -> Tensor:
        a, g = self.weight.a, self.weight.g
        if self.shape != self.slope.shape:
            return (g @ self.slope).mul_(a).sum((1, 2)).square()
        squares, size = self.slope.square().flatten(), max(1, FORMED // self.slope.numel())
        cuts = [slice(at, at + size) for at in range(0, len(a), size)]
        return torch.cat([Product(a[cut], g[cut]).each().square_().flatten(1) @ squares for cut in cuts])

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        gradient = torch.zeros_like(self.slope)
        self.weight.add_to(gradient, weights)
        gradient *= self.slope
        total += gradient if self.shape == self.slope.shape else gradient.sum()


Whole = Each | Product | Rows | Behind
Part = Whole | Masked


def together(parts: Sequence[Each]) -> Tensor:
    """Gradients of several parameters side by side [B, P]."""
    rows = []
    for packing, some in groupby(parts, lambda part: part.packing):
        if packing is None:
            rows.append(_beside([part.gradient.flatten(1) for part in some], 1))
        else:
            slots = _beside([part.gradient.flatten(2) for part in some], 2)
            rows.append(slots.flatten(0, 1).index_select(0, packing.slots))
    return _beside(rows, 1)


def _beside(values: list[Tensor], dim: int) -> Tensor:
    return values[0] if len(values) == 1 else torch.cat(values, dim)


def _total(values: Tensor, packing: Packing | None) -> Tensor:
    """Sum over each example's tokens [B, ...] of values [B, T, ...] or packed [R, W, ...]."""
    return values.sum(1) if packing is None else packing.total(values)


def _to_rows(values: Tensor, packing: Packing | None) -> Tensor:
    """Values [B] of the rows: themselves, or packed [R, W]."""
    return values if packing is None else packing.to_tokens(values)


def _column(weights: Tensor, packing: Packing | None) -> Tensor:
    """Weights [B] to multiply tokens with, [B, 1, 1] or packed [R, W, 1]."""
    return weights[:, None, None] if packing is None else packing.to_tokens(weights)[..., None]


def _gram_sum(products: Tensor, terms: int, packing: Packing | None) -> Tensor:
    """Square norms [B] of sums over t of vectors, from their inner products [B, T, T]; never too short by rounding.

    Of packed rows [R, W, W] only products within an example count.

    Where the sum all but cancels, its square norm is lost in the rounding of the products: the most that they can
    have lost is added, for a gradient whose norm is found too short would not be clipped. An inner product of n terms
    loses at most n half epsilons of the product of the lengths, in whatever order it is summed (Higham 2002, section
    3.1), to first order: `terms` in both factors, twice the width in the two sums, and a few for the rest.
    """
    if packing:
        products.mul_(packing.same)
    # A feature axis, for a packing's values have one.
    lengths = _total(products.diagonal(dim1=1, dim2=2).sqrt()[..., None], packing)[:, 0]
    lost = (terms / 2 + products.shape[1] + 4) * torch.finfo(products.dtype).eps
    return _total(products.sum(2)[..., None], packing)[:, 0] + lost * lengths.square()


def zeroed(values: Tensor, lost: Tensor) -> Tensor:
    """Values [B, ...] with zeros in the rows of lost examples [B]; or packed, both [R, W, ...]."""
    return values.masked_fill(lost.view(*lost.shape, *[1] * (values.dim() - lost.dim())), 0)
