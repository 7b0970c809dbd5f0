"""What the kernels of the chunked Gated DeltaNet rule tell each other, in constant memory.

A slab is a run of chunks whose products fit the workspace.  Results do not depend on where a slab ends: a sequence that
it cuts hands its state on in float32, and sequences know nothing of each other.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from hotstart.kernels.ops import GdnDims
from hotstart.kernels.series import Own
from hotstart.kernels.space import LaunchSpace

__all__ = [
    "WORKSPACE_BYTES",
    "Columns",
    "Slab",
    "Walk",
    "columns",
    "slab_limit",
    "slabs",
    "unit_of",
    "warmup",
    "workspace",
    "x_and_factors",
    "z_of_head",
]

# The most that a call takes.  One prompt alone that is longer gains nothing from more than this part of it.
WORKSPACE_BYTES = 104 << 20
_ALONE = 0.57
_LONG = 130  # chunks
_BESIDE = 64  # chunks, from which on it pays to prepare some while others are scanned
_SCAN_TILES = 2  # programs of the scan for a head, where it has few
APART_BYTES = 16 << 20  # up to here q and k have memory of their own, and one launch convolves all


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


def slab_limit(dims: GdnDims, chunk_length: int, itemsize: int, z_apart: bool = True) -> int:
    """Chunks that fit the workspace."""
    z, x, floats, carry = _sizes(dims, chunk_length)
    return max(1, (WORKSPACE_BYTES - 2 * 4 * carry) // (itemsize * (z_apart * z + x) + 4 * floats))


def _sizes(dims: GdnDims, C: int) -> tuple[int, int, int, int]:
    """Elements: of a chunk's Z; of its X; of its factors; of a carried state."""
    HV, K, V = dims.num_value_heads, dims.key_dim, dims.value_dim
    return HV * C * K, HV * C * C, HV * (2 * C + 4), HV * V * K


def workspace(dims: GdnDims, chunk_length: int, dtype: torch.dtype, chunks: int, z_apart: bool) -> dict[str, Own]:
    """What prep tells the scan, and one scan the next, in buffers of chunks.

    Z [HV, C, K] and X [HV, C, C] of each; then, in float32, two states that a slab hands to the next, in turns, and
    factors [HV, 2 C + 4] of each chunk: of K S, of Q S, of S, and padding.
    """
    z, x, floats, carry = _sizes(dims, chunk_length)
    found = {"x": Own(dtype, chunks * x), "floats": Own(torch.float32, 2 * carry + chunks * floats)}
    return {"z": Own(dtype, chunks * z)} | found if z_apart else found


@triton.jit
def x_and_factors(x_ptr, floats_ptr, block, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr):
    """Where X and the factors of a chunk's head lie; blocks count chunks of all buffers, and heads."""
    return x_ptr + block * (C * C), floats_ptr + 2 * HV * V * K + block * (2 * C + 4)


@triton.jit
def z_of_head(z_apart, z_at, block, token, i_hv, K: tl.constexpr, C: tl.constexpr):
    """The first row and column of a chunk's Z, [C, K]: each head's own rows, or columns in the rows of its tokens."""
    row = tl.where(z_apart != 0, block * C, token)
    column = tl.where(z_apart != 0, 0, z_at + i_hv * K)
    return row, column


class Columns(NamedTuple):
    """Where q and k lie once they are convolved, in units of UNIT elements; and which channels a launch convolves.

    Long prompts have them in the packed rows, in place of inputs that nobody needs any more: the convolution is
    launched for v, then for q and k, which go where the inputs of v were; or for v, for q, then for k, which goes to
    those of q.  So many columns are left then that a chunk of a prompt alone can have its Z in them, K of each head in
    the row of each token.
    """

    apart: bool  # in memory of their own
    row: int
    q_at: int
    k_at: int
    launches: tuple[tuple[int, int], ...]  # first channel, how many
    z_at: int | None = None


def columns(dims: GdnDims, num_rows: int, itemsize: int) -> Columns:
    qk, v = dims.num_key_heads * dims.key_dim, dims.num_value_heads * dims.value_dim
    unit = unit_of(dims)
    if num_rows * 2 * qk * itemsize <= APART_BYTES or qk > v:
        return Columns(True, 2 * qk // unit, 0, qk // unit, ((0, 2 * qk + v),))
    row, first, z = dims.packed_width // unit, (2 * qk, v), dims.num_value_heads * dims.key_dim
    if 2 * qk <= v:
        z_at = 0 if z <= v else None
        return Columns(False, row, v // unit, (v + qk) // unit, (first, (0, 2 * qk)), z_at)
    z_at = qk // unit if z <= qk else None
    return Columns(False, row, 2 * qk // unit, 0, (first, (0, qk), (qk, qk)), z_at)


def unit_of(dims: GdnDims) -> int:
    """Elements that divide all offsets of q and k, so that 16 bytes are loaded at once."""
    return math.gcd(dims.key_dim, 8)


def warmup(space: LaunchSpace) -> None:
    """Of every kernel that works on these: the op that launches them all, which imports them."""
    from hotstart.kernels import gdn_chunked

    gdn_chunked.warmup(space)
