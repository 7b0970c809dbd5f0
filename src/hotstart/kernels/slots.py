"""Torch access to pools of slots (conv and recurrent states), by the slots that the plan knew as host integers.

A read slot of -1 is the zero state.  A sequence works in its write slot alone, so slots of others are never touched.
"""

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["bring", "store", "stretches", "take"]


def bring(pool: Tensor, reads: tuple[int, ...], writes: tuple[int, ...]) -> None:
    """Make every write slot hold what its read slot holds."""
    if reads == writes:
        return
    for read, write in zip(reads, writes, strict=True):
        assert write >= 0, f"a real sequence writes slot {write}"
        if read < 0:
            pool[write].zero_()
        elif read != write:
            pool[write].copy_(pool[read])


# The same for all layers of a step.
@lru_cache(maxsize=8)
def stretches(slots: tuple[int, ...], limit: int) -> tuple[tuple[int, int], ...]:
    """Rows [first, last) whose slots are consecutive, at most `limit` of them: a stretch is one piece of the pool."""
    ends = [i for i in range(1, len(slots)) if slots[i] != slots[i - 1] + 1]
    parts = []
    for first, last in pairwise((0, *ends, len(slots))):
        parts += [(start, min(start + limit, last)) for start in range(first, last, limit)]
    return tuple(parts)


def take(pool: Tensor, slots: tuple[int, ...]) -> Tensor:
    """The rows of `slots`, [N, ...]: a view where they are consecutive, else a copy."""
    if _consecutive(slots):
        return pool.narrow(0, slots[0], len(slots))
    return pool.index_select(0, _index(slots, pool.device))


def store(pool: Tensor, slots: tuple[int, ...], rows: Tensor) -> None:
    """Write back what `take` gave, after it was changed in place."""
    if not _consecutive(slots):
        pool.index_copy_(0, _index(slots, pool.device), rows)


# The same for all layers of a step.
@lru_cache(maxsize=8)
def _index(slots: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(slots, dtype=torch.int64, device=device)


def _consecutive(slots: tuple[int, ...]) -> bool:
    return len(slots) == 1 or slots == tuple(range(slots[0], slots[0] + len(slots)))
