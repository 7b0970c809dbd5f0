"""What the kernels of the chunked Gated DeltaNet rule tell each other, in constant memory.

A slab is a run of chunks whose products fit the workspace.  Results do not depend on where a slab ends: a sequence that
it cuts hands its state on in float32, and sequences know nothing of each other.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from hotstart.kernels.ops import GdnDims
from hotstart.kernels.space import LaunchSpace

__all__ = [
    "WORKSPACE_BYTES",
    "Buffer",
    "Columns",
    "Slab",
    "Workspace",
    "columns",
    "slab_limit",
    "slabs",
    "unit_of",
    "warmup",
]

# The most that a call takes.  One sequence alone gains nothing from more than this part of it.
WORKSPACE_BYTES = 104 << 20
_ALONE = 0.6
APART_BYTES = 16 << 20  # up to here q and k have memory of their own, and one launch convolves all


class Slab(NamedTuple):
    first_sequence: int
    num_sequences: int  # that have a chunk in it
    begin: int  # chunks
    end: int
    longest: int  # most chunks of one sequence in it


# The same for all layers of a step.
@lru_cache(maxsize=8)
def slabs(
    lengths: tuple[int, ...], chunk_length: int, most: int, num_heads: int, multiprocessors: int
) -> tuple[tuple[Slab, ...], int]:
    """All chunks in slabs, and how many buffers these take turns in.

    Where one slab's scan leaves half of the multiprocessors idle, prep of the next one has them, in a second buffer.
    """
    counts = [-(-length // chunk_length) for length in lengths]
    if sum(counts) <= _most(most, sum(count > 0 for count in counts)):
        return (Slab(0, len(counts), 0, sum(counts), max(counts)),), 1
    found = _cut(counts, most, num_heads, multiprocessors)
    if all(2 * slab.num_sequences * num_heads <= multiprocessors for slab in found):
        return _cut(counts, max(1, most // 2), num_heads, multiprocessors), 2
    return found, 1


def _most(most: int, num_sequences: int) -> int:
    return most if num_sequences > 1 else max(1, int(most * _ALONE))


def _cut(counts: Sequence[int], most: int, num_heads: int, multiprocessors: int) -> tuple[Slab, ...]:
    """Slabs of at most `most` chunks: each ends where the GPU has most to do at once.

    The scan has a program for each head of each sequence, and takes as long as the longest of them, once more for each
    time that they exceed the multiprocessors.
    """
    ends = list(accumulate(counts))
    found = []
    begin = first = 0
    while first < len(ends):
        if ends[first] <= begin:
            first += 1
            continue
        best, best_rate, longest = Slab(first, 0, begin, begin, 0), 0.0, 0
        for last in range(first, len(ends)):
            end = min(ends[last], begin + _most(most, last - first + 1))
            longest = max(longest, end - max(begin, ends[last] - counts[last]))
            waves = -(-(last - first + 1) * num_heads // multiprocessors)
            rate = (end - begin) / (waves * longest)
            if rate >= best_rate:
                best, best_rate = Slab(first, last - first + 1, begin, end, longest), rate
            if end < ends[last]:
                break
        found.append(best)
        begin = best.end
    return tuple(found)


class ChunkSizes(NamedTuple):
    """Elements of one chunk's part of each tensor of a buffer: first those of 2 or 4 bytes, then float32."""

    z: int
    x: int
    factors: int
    decays: int

    @classmethod
    def of(cls, dims: GdnDims, chunk_length: int) -> "ChunkSizes":
        HV, K, C = dims.num_value_heads, dims.key_dim, chunk_length
        return cls(HV * K * C, HV * C * C, 2 * HV * C, HV)

    def num_bytes(self, itemsize: int) -> int:
        return itemsize * sum(self[:2]) + 4 * sum(self[2:])


def _carry(dims: GdnDims) -> int:
    return dims.num_value_heads * dims.value_dim * dims.key_dim


def slab_limit(dims: GdnDims, chunk_length: int, itemsize: int) -> int:
    """Chunks that fit the workspace."""
    chunk = ChunkSizes.of(dims, chunk_length).num_bytes(itemsize)
    return max(1, (WORKSPACE_BYTES - 2 * 4 * _carry(dims)) // chunk)


class Buffer(NamedTuple):
    """What prep tells the scan about a slab, of undefined content."""

    z: Tensor  # [chunks, HV, K, C]
    x: Tensor  # [chunks, HV, C, C]
    factors: Tensor  # [chunks, HV, 2, C] float32
    decays: Tensor  # [chunks, HV] float32


class Workspace(NamedTuple):
    """Two allocations."""

    buffers: tuple[Buffer, ...]
    carries: tuple[Tensor, Tensor]  # [HV, V, K] float32: the state from the slab before, and for the one after

    @classmethod
    def take(
        cls, dims: GdnDims, chunk_length: int, operand: torch.dtype, device: torch.device, num_chunks: int, count: int
    ) -> "Workspace":
        """`count` buffers for slabs of at most `num_chunks` chunks."""
        z, x, factors, decays = (num_chunks * size for size in ChunkSizes.of(dims, chunk_length))
        carry, decays = _carry(dims), -(-decays // 4) * 4  # what follows is aligned
        tiles = torch.empty(count * (z + x), dtype=operand, device=device)
        floats = torch.empty(2 * carry + count * (factors + decays), dtype=torch.float32, device=device)
        parts = tiles.split_with_sizes((z, x) * count)
        carry_in, carry_out, *rest = floats.split_with_sizes((carry, carry, *(factors, decays) * count))
        buffers = tuple(Buffer(*parts[i : i + 2], *rest[i : i + 2]) for i in range(0, 2 * count, 2))
        return cls(buffers, (carry_in, carry_out))


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
