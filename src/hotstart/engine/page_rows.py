"""PageRows: the pages of every running sequence as a row of one array, written again only where they have changed.

A sequence's pages are an immutable tuple, which the spans of many steps share: as long as it is the same object, the
row of its slot is right.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotstart.engine.plan import Span

__all__ = ["PageRows"]


class PageRows:
    def __init__(self, num_slots: int, width: int) -> None:
        self._rows = np.zeros((num_slots, width), dtype=np.int32)
        self._held: list[tuple[int, ...]] = [()] * num_slots

    def write(self, table: NDArray[np.int32], spans: Sequence[Span]) -> None:
        """Row i of the table, all zero so far, gets the pages of span i.  No two spans write the same slot."""
        held, widest = self._held, 0
        slots = [span.write_slot for span in spans]
        for slot, span in zip(slots, spans, strict=True):
            pages = span.pages
            if held[slot] is not pages:
                row, held[slot] = self._rows[slot], pages
                row[: len(pages)] = pages
                row[len(pages) :] = 0
            if len(pages) > widest:
                widest = len(pages)
        table[: len(slots), :widest] = self._rows[slots, :widest]
