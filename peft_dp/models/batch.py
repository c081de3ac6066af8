"""From sentences to tensors: a logical batch is cut into physical ones by tokens.

The sum of per-example gradients does not depend on how a batch is cut, so it is
cut by a token count: memory does not depend on the longest sentence of
the data. Sentences share rows (`packing`), or have one each, padded, where a method
needs that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import overload

import torch
from torch import Tensor, nn

from peft_dp.models import packing
from peft_dp.models.packing import Packing

IGNORED = -100
"""Label of a token that has none; torch's cross-entropy leaves it out."""


@dataclass
class Budget:
    """How large a physical batch is made on a device.

    Attributes:
        tokens: Padded tokens of a physical batch.
        part: Tokens whose passes take about as long as there being one more physical batch.
    """

    tokens: int
    part: int


BUDGETS = {"cpu": Budget(tokens=2048, part=64), "cuda": Budget(tokens=16384, part=16384)}
"""Device -> budget. On a CPU: full matrix products, within its cache. On an H200 a private pass of RoBERTa-large takes
100 ms whatever is in it and 7 ms for each 1,000 tokens more (docs/measurements.md)."""


@dataclass(frozen=True)
class Batch:
    """One physical batch: B examples padded to T tokens, or in R rows of W places if it has a packing.

    Attributes:
        ids: Token ids [B, T] or [R, W].
        mask: 1 on tokens, 0 on padding [B, T]; or which places attend to which (bool) [R, 1, W, W].
        types: 1 on the second sentence, like the ids.
        positions: Position of each token in its example, like the ids.
        labels: Class indices (int64) or scores (float32) [B], or tags (int64) [B, T].
        states: What enters the first layer that is not left out, like the ids but [..., d]; None where all are passed.
        packing: Where the examples are.
    """

    ids: Tensor
    mask: Tensor
    types: Tensor
    positions: Tensor
    labels: Tensor
    states: Tensor | None = None
    packing: Packing | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[list[int]]):
    """Rows of integers of different lengths, end to end, which may lie in a file.

    Attributes:
        values: The values of all rows [P].
        starts: Where each row starts, and at last where all end [N + 1].
    """

    values: Tensor
    starts: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Return rows end to end."""
        lengths = torch.tensor([0, *map(len, rows)])
        return cls(torch.tensor([*chain.from_iterable(rows)], dtype=torch.int32), lengths.cumsum(0))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """Return the rows of several, one after the other."""
        lengths = torch.cat([torch.zeros(1, dtype=torch.int64), *(part.lengths for part in parts)])
        return cls(torch.cat([part.values for part in parts]), lengths.cumsum(0))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.starts) - 1

    @overload
    def __getitem__(self, at: int) -> list[int]: ...

    @overload
    def __getitem__(self, at: slice) -> list[list[int]]: ...

    def __getitem__(self, at: int | slice) -> list[int] | list[list[int]]:
        """Return a row, or some."""
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        row = range(len(self))[at]
        found: list[int] = self.values[self.starts[row] : self.starts[row + 1]].tolist()
        return found

    @property
    def lengths(self) -> Tensor:
        """The number of values of each row [N]."""
        return self.starts.diff()

    def take(self, rows: Sequence[int]) -> Tensor:
        """Return the values of some rows, end to end (int64)."""
        at = torch.tensor([*rows], dtype=torch.int64)
        starts, lengths = self.starts[at], self.starts[at + 1] - self.starts[at]
        before = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
        return self.values[before + torch.arange(len(before))].long()


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        ids: Token ids of each example, specials included, without padding.
        types: Token types of each example.
        labels: As in `Batch`, [N] or [N, T] with T tokens in the longest example.
        pad: Id of the padding token.
        states: What enters the first layer that is not left out, of each example [T, d]; see `reuse`.
        reads: Place of the read-out in each example; None for the first.
        tokens: Number of tokens of each example, where its ids are not all there are.
    """

    ids: Sequence[Sequence[int]]
    types: Sequence[Sequence[int]]
    labels: Tensor
    pad: int
    states: Sequence[Tensor] | None = None
    reads: Sequence[int] | None = None
    tokens: Sequence[int] | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.ids)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of tokens of each example."""
        found: list[int] = self._ids.lengths.tolist()
        return found

    @cached_property
    def _ids(self) -> Ragged:
        return self.ids if isinstance(self.ids, Ragged) else Ragged.of(self.ids)

    @cached_property
    def _types(self) -> Ragged:
        return self.types if isinstance(self.types, Ragged) else Ragged.of(self.types)

    def packed(self, indices: Sequence[int], device: str) -> Batch:
        """The examples of `indices`, several to a row."""
        lengths = torch.tensor([self.lengths[i] for i in indices])
        held, width = packing.rows(lengths.tolist())
        starts = torch.zeros(len(indices), dtype=torch.int64)
        asking = torch.full((len(held), max(map(len, held))), len(indices))
        slots = torch.zeros_like(starts)
        for row, ks in enumerate(held):
            starts[ks] = row * width + lengths[ks].cumsum(0) - lengths[ks]
            asking[row, : len(ks)] = torch.tensor(ks)
            slots[ks] = row * asking.shape[1] + torch.arange(len(ks))
        owners = torch.arange(len(indices)).repeat_interleave(lengths)
        position = torch.arange(len(owners)) - (lengths.cumsum(0) - lengths)[owners]
        places, size = starts[owners] + position, (len(held), width)

        def placed(values: Tensor, filled: int) -> Tensor:
            """Values [sum of lengths, ...] in rows [R, W, ...]."""
            whole = values.new_full((len(held) * width, *values.shape[1:]), filled)
            whole[places.to(values.device)] = values
            return _moved(whole.view(*size, *values.shape[1:]), device)

        reads = starts if self.reads is None else starts + torch.tensor([self.reads[i] for i in indices])
        where = Packing(
            owner=placed(owners, len(indices)),
            starts=_moved(starts, device),
            lengths=_moved(lengths, device),
            reads=_moved(reads, device),
            asking=_moved(asking, device),
            slots=_moved(slots, device),
            longest=int(lengths.max()),
        )
        labels = self.labels[list(indices)]
        return Batch(
            ids=placed(self._ids.take(indices), self.pad),
            mask=where.same[:, None],
            types=placed(self._types.take(indices), 0),
            positions=placed(position, 0),
            labels=_moved(labels[:, : where.longest] if labels.dim() == 2 else labels, device),
            states=None if self.states is None else placed(torch.cat([self.states[i] for i in indices]), 0),
            packing=where,
        )

    def batch(self, indices: Sequence[int], device: str) -> Batch:
        """The examples of `indices`, a row each, padded to the longest of them."""
        lengths = torch.tensor([self.lengths[i] for i in indices])
        width = int(lengths.max())
        positions = torch.arange(width).repeat(len(indices), 1)
        there = positions < lengths[:, None]
        ids, types = torch.full_like(positions, self.pad), torch.zeros_like(positions)
        ids[there], types[there] = self._ids.take(indices), self._types.take(indices)
        labels = self.labels[list(indices)]
        labels = labels[:, :width] if labels.dim() == 2 else labels
        states = None if self.states is None else [self.states[i] for i in indices]
        return Batch(
            ids=_moved(ids, device),
            mask=_moved(there.long(), device),
            types=_moved(types, device),
            positions=_moved(positions, device),
            labels=_moved(labels, device),
            states=None if states is None else nn.utils.rnn.pad_sequence(states, batch_first=True),
        )

    def count(self, indices: Sequence[int]) -> int:
        """Number of tokens of the examples together."""
        return sum((self.tokens or self.lengths)[i] for i in indices)

    def split(self, indices: Sequence[int], budget: Budget = BUDGETS["cpu"]) -> Iterator[list[int]]:
        """Splits a logical batch into as few physical ones as have at most about the budget's tokens, for `packed`.

        Each has its share of the long and of the short ones, which then fill each other's rows.
        """
        order = sorted(indices, key=lambda i: (-self.lengths[i], i))
        parts = min(-(-sum(self.lengths[i] for i in order) // budget.tokens), len(order))
        for part in range(parts):
            yield order[part::parts]

    def cut(self, indices: Sequence[int], budget: Budget = BUDGETS["cpu"]) -> Iterator[list[int]]:
        """Cuts a logical batch into physical ones for `batch`: longest first, within the tokens or one example.

        Of all ways to do that with cuts where the length falls, or where a part is full, the one that costs least,
        a part counting as much as `budget.part` tokens.
        """
        order = sorted(indices, key=lambda i: (-self.lengths[i], i))
        lengths = [self.lengths[i] for i in order]
        falls = [at for at in range(1, len(order) + 1) if at == len(order) or lengths[at] < lengths[at - 1]]
        best: dict[int, tuple[int, int]] = {0: (0, 0)}  # end of a part -> least cost up to there, and its start
        for start in range(len(order)):
            if start in best:
                full = min(start + max(1, budget.tokens // lengths[start]), len(order))
                for end in {*(at for at in falls if start < at <= full), full}:
                    cost = best[start][0] + (end - start) * lengths[start] + budget.part
                    best[end] = min(best.get(end, (cost, start)), (cost, start))
        ends = [len(order)]
        while ends[-1] > 0:
            ends.append(best[ends[-1]][1])
        for start, end in pairwise(reversed(ends)):
            yield order[start:end]


def _moved(values: Tensor, device: str) -> Tensor:
    """Values on a device, without waiting for what it has still to do; they are read when this returns."""
    return values.to(device, non_blocking=True)
