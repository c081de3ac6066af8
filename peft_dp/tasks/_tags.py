"""Tags of words as files have them, IOB1 or IOB2, made IOB2."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def begun(tags: Sequence[int]) -> tuple[int, ...]:
    """Return the tags with B- at each start.

    An I-, whose index is even, becomes the B- before it unless it continues an entity.
    """
    pairs = pairwise((0, *tags))
    return tuple(tag - (tag > 0 and tag % 2 == 0 and before not in (tag - 1, tag)) for before, tag in pairs)
