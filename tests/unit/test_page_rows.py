"""PageRows: rows that are remembered are those that would be written."""

import random

import numpy as np

from hotstart.engine.page_rows import PageRows
from hotstart.engine.plan import Span


def test_rows_follow_pages_that_grow_and_slots_that_change_hands():
    dice, width, rows = random.Random(3), 12, PageRows(5, 12)
    pages = {slot: (slot,) for slot in range(5)}
    for _ in range(200):
        slots = dice.sample(range(5), dice.randrange(1, 6))
        for slot in slots:
            if dice.random() < 0.3 and len(pages[slot]) < width:
                pages[slot] += (dice.randrange(1, 99),)
            elif dice.random() < 0.1:  # another sequence has the slot now
                pages[slot] = tuple(dice.choices(range(1, 99), k=dice.randrange(1, width + 1)))
        spans = [Span(slot, 0, 1, (0,), pages[slot], slot, slot) for slot in slots]
        table, expected = np.zeros((8, width), np.int32), np.zeros((8, width), np.int32)
        rows.write(table, spans)
        for row, span in zip(expected, spans, strict=False):
            row[: len(span.pages)] = span.pages
        assert (table == expected).all()
