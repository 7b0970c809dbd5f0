"""Which chunks of a step are prepared and scanned together: slabs, and how many buffers they take turns in.

Results do not depend on where a slab ends: a sequence that it cuts hands its state on in float32, and sequences know
nothing of each other.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Slab", "Walk", "slabs"]

# One prompt alone that is longer gains nothing from more than this part of the workspace.
_ALONE = 0.57
_LONG = 130  # chunks
_BESIDE = 64  # chunks, from which on it pays to prepare some while others are scanned
_SCAN_TILES = 2  # programs of the scan for a head, where it has few


class Slab(NamedTuple):
    first_sequence: int
    num_sequences: int  # that have a chunk in it
    begin: int  # chunks
    end: int
    longest: int  # most chunks of one sequence in it


class Walk(NamedTuple):
    slabs: tuple[Slab, ...]
    room: int  # chunks of the largest
    buffers: int  # that the slabs take turns in
    held: int  # chunks that memory is taken for: no other step of as many rows, or fewer, takes more


def slabs(
    lengths: tuple[int, ...], num_rows: int, chunk_length: int, most: int, num_heads: int, multiprocessors: int
) -> Walk:
    """All chunks of a step of `num_rows` rows, at most `most` at once.

    Where the scan of a slab leaves multiprocessors idle, prep of the next one has them, in a second buffer.
    """
    counts = [-(-length // chunk_length) for length in lengths]
    total, sequences = sum(counts), sum(count > 0 for count in counts)
    held = max(2, min(most, num_rows))
    if sequences == 1:
        rows = -(-num_rows // chunk_length)
        most = most if rows <= min(most, _LONG) else max(1, int(most * _ALONE))
        held = max(2, min(most, rows + 1))
    if total >= _BESIDE and 4 * _SCAN_TILES * num_heads * sequences <= 3 * multiprocessors:
        size = -(-total // max(2, -(-total // max(1, most // 2))))
        found = tuple(_slab(counts, begin, min(total, begin + size)) for begin in range(0, total, size))
        return Walk(found, size, 2, held)
    found = (_slab(counts, 0, total),) if total <= most else _waves(counts, most, num_heads, multiprocessors)
    return Walk(found, max(slab.end - slab.begin for slab in found), 1, held)


def _slab(counts: Sequence[int], begin: int, end: int) -> Slab:
    ends = list(accumulate(counts))
    first = bisect_right(ends, begin)
    last = bisect_left(ends, end)
    longest = max(min(ends[i], end) - max(ends[i] - counts[i], begin) for i in range(first, last + 1))
    return Slab(first, last - first + 1, begin, end, longest)


def _waves(counts: Sequence[int], most: int, num_heads: int, multiprocessors: int) -> tuple[Slab, ...]:
    """Slabs that end where the GPU has most to do at once.

    The scan has a program for each head of each sequence, and takes as long as the longest of them, once more for each
    time that they exceed the multiprocessors.
    """
    ends = list(accumulate(counts))
    found = []
    begin = 0
    while begin < ends[-1]:
        first = bisect_right(ends, begin)
        best, best_rate = Slab(first, 0, begin, begin, 0), 0.0
        for last in range(first, len(ends)):
            end = min(ends[last], begin + most)
            if end > begin:
                slab = _slab(counts, begin, end)
                rate = (end - begin) / (-(-slab.num_sequences * num_heads // multiprocessors) * slab.longest)
                if rate >= best_rate:
                    best, best_rate = slab, rate
            if end < ends[last]:
                break
        found.append(best)
        begin = best.end
    return tuple(found)
