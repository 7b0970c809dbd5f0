"""What the kernels of the chunked Gated DeltaNet rule tell each other, in constant memory.

A slab is a run of chunks whose products fit the workspace.  Results do not depend on where a slab ends: a sequence that
it cuts hands its state on in float32, and sequences know nothing of each other.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.ops import GdnDims
from hotstart.kernels.space import LaunchSpace

__all__ = [
    "WORKSPACE_BYTES",
    "Columns",
    "Slab",
    "Walk",
    "Workspace",
    "buffer_at",
    "columns",
    "slab_limit",
    "slabs",
    "to_operand",
    "unit_of",
    "warmup",
]

# The most that a call takes.  One prompt alone gains nothing from more than this part of it.
WORKSPACE_BYTES = 104 << 20
_ALONE = 0.57
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


# The same for all layers of a step.
@lru_cache(maxsize=8)
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
        most = max(1, int(most * _ALONE))
        held = max(2, min(most, -(-num_rows // chunk_length) + 1))
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


def slab_limit(dims: GdnDims, chunk_length: int, itemsize: int) -> int:
    """Chunks that fit the workspace."""
    tiles, floats, carry = _sizes(dims, chunk_length)
    return max(1, (WORKSPACE_BYTES - 2 * 4 * carry) // (itemsize * tiles + 4 * floats))


def _sizes(dims: GdnDims, C: int) -> tuple[int, int, int]:
    """Elements: of a chunk's Z and X; of its factors; of a carried state."""
    HV, K, V = dims.num_value_heads, dims.key_dim, dims.value_dim
    return HV * (K * C + C * C), HV * (2 * C + 4), HV * V * K


class Workspace(NamedTuple):
    """What prep tells the scan, and one scan the next: two allocations, of undefined content.

    The scan's carried state is float32, in turns: one from the slab before, one for the slab after.
    """

    tiles: Tensor  # buffers x (Z [room, HV, K, C], X [room, HV, C, C])
    floats: Tensor  # float32: 2 x [HV, V, K], then buffers x [room, HV, 2 C + 4]: of K S, of Q S, of S, and padding

    @classmethod
    def take(
        cls, dims: GdnDims, chunk_length: int, dtype: torch.dtype, device: torch.device, chunks: int
    ) -> "Workspace":
        tiles, floats, carry = _sizes(dims, chunk_length)
        return cls(
            torch.empty(chunks * tiles, dtype=dtype, device=device),
            torch.empty(2 * carry + chunks * floats, dtype=torch.float32, device=device),
        )


@triton.jit
def buffer_at(
    tiles_ptr, floats_ptr, room, buffer, block, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr
):
    """Where Z, X and the factors of a chunk's head lie."""
    p_tiles = tiles_ptr + buffer * room * (HV * (K * C + C * C))
    p_z = p_tiles + block * (K * C)
    p_x = p_tiles + room * (HV * K * C) + block * (C * C)
    p_factor = floats_ptr + 2 * HV * V * K + buffer * room * (HV * (2 * C + 4)) + block * (2 * C + 4)
    return p_z, p_x, p_factor


@triton.jit
def to_operand(x, dtype: tl.constexpr):
    """float16 ends at 65504: what is beyond it stays there, so that no infinity meets another."""
    if dtype == tl.float16:
        x = tl.clamp(x, -65504.0, 65504.0)
    return x.to(dtype)


class Columns(NamedTuple):
    """Where q and k lie once they are convolved, in units of UNIT elements; and which channels a launch convolves.

    Long prompts have them in the packed rows, in place of inputs that nobody needs any more: the convolution is
    launched for v, then for q and k, which go where the inputs of v were; or for v, for q, then for k, which goes to
    those of q.
    """

    apart: bool  # in memory of their own
    row: int
    q_at: int
    k_at: int
    launches: tuple[tuple[int, int], ...]  # first channel, how many


@lru_cache(maxsize=8)
def columns(dims: GdnDims, num_rows: int, itemsize: int) -> Columns:
    qk, v = dims.num_key_heads * dims.key_dim, dims.num_value_heads * dims.value_dim
    unit = unit_of(dims)
    if num_rows * 2 * qk * itemsize <= APART_BYTES or qk > v:
        return Columns(True, 2 * qk // unit, 0, qk // unit, ((0, 2 * qk + v),))
    first = (2 * qk, v)
    if 2 * qk <= v:
        return Columns(False, dims.packed_width // unit, 2 * qk // unit, 3 * qk // unit, (first, (0, 2 * qk)))
    return Columns(False, dims.packed_width // unit, 2 * qk // unit, 0, (first, (0, qk), (qk, qk)))


def unit_of(dims: GdnDims) -> int:
    """Elements that divide all offsets of q and k, so that 16 bytes are loaded at once."""
    return math.gcd(dims.key_dim, 8)


def warmup(space: LaunchSpace) -> None:
    """Of every kernel that works on these: the op that launches them all, which imports them."""
    from hotstart.kernels import gdn_chunked

    gdn_chunked.warmup(space)
