"""EditRows: what the rows of one slab want done to their logits, on its way into a step's data and out of it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hotstart.engine.limits import ALIGN_WORDS
from hotstart.engine.masks import MaskBuffer
from hotstart.engine.plan import Sampling, Span
from hotstart.kernels.edits import Edits, Masks

__all__ = ["EditRows", "Strip"]

_TABLE, _PENALTIES = 8, 4  # columns


class Strip:
    """Cuts one section of words into pieces whose sizes no two steps share."""

    def __init__(self) -> None:
        self.num_words = 0

    def take(self, count: int) -> slice:
        start = self.num_words
        self.num_words = start + count + -count % ALIGN_WORDS
        return slice(start, start + count)


class EditRows:
    def __init__(self, wishes: Sequence[tuple[Span, Sampling]], masks: MaskBuffer, strip: Strip) -> None:
        self._masks = masks
        self._table: list[tuple[int, ...]] = []
        self._penalties: list[float] = []
        self._ids: list[int] = []
        self._values: list[float] = []
        self._grammar = [
            (row, masks.add(span.sequence_id)) for row, (span, wish) in enumerate(wishes) if wish.is_guided
        ]
        self._allowed: list[tuple[int, int]] = []  # row, row of the masks
        for row, (span, wish) in enumerate(wishes):
            if wish.allowed is not None:
                self._allowed.append((row, masks.add(wish.allowed)))
            if span.penalties is not None or wish.bias or wish.banned_ids or wish.allowed is not None:
                self._add(row, span, wish)
        sizes = len(self._table) * _TABLE, len(self._penalties), len(self._ids), len(self._values), len(self._allowed)
        self._places = [strip.take(size) for size in sizes]
        self._grammar_at = strip.take(len(self._grammar))

    def write(self, words: np.ndarray) -> None:
        """words: int32."""
        words[self._grammar_at] = [row for row, _ in self._grammar]
        if not self._table:
            return
        table, penalties, ids, values, allowed = (words[place] for place in self._places)
        table[:] = np.array(self._table).ravel()
        penalties.view(np.float32)[:] = self._penalties
        ids[:] = self._ids
        values.view(np.float32)[:] = self._values
        allowed[:] = [row for row, _ in self._allowed]

    def read(self, words: Tensor) -> Edits | None:
        if not self._table:
            return None
        table, penalties, ids, values, allowed = (words[place] for place in self._places)
        return Edits(
            table=table.view(-1, _TABLE),
            penalties=penalties.view(torch.float32).view(-1, _PENALTIES),
            ids=ids,
            values=values.view(torch.float32),
            allowed=self._rows(self._allowed, allowed),
            host=tuple(self._table),
        )

    def grammar(self, words: Tensor) -> Masks | None:
        return self._rows(self._grammar, words[self._grammar_at])

    def _add(self, row: int, span: Span, wish: Sampling) -> None:
        slot, prompt, *penalties = span.penalties or (0, 0, 1.0, 0.0, 0.0)
        first, ban = len(self._ids), len(self._ids) + len(wish.bias)
        length = wish.position if span.penalties else 0
        self._table.append((row, slot, prompt, length, first, ban, ban + len(wish.banned_ids), 0))
        self._penalties += (*penalties, 0.0)
        self._ids += (*(token_id for token_id, _ in wish.bias), *wish.banned_ids)
        self._values += (*(value for _, value in wish.bias), *(0.0 for _ in wish.banned_ids))

    def _rows(self, masked: list[tuple[int, int]], rows: Tensor) -> Masks | None:
        """Their masks were added one after the other."""
        if not masked:
            return None
        return Masks(rows, self._masks.rows(masked[0][1], len(masked)), tuple(row for row, _ in masked))
