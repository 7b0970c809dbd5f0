"""What the kernels of the chunked Gated DeltaNet rule tell each other, in constant memory.

A slab is a run of chunks whose products fit the workspace.  Results do not depend on where a slab ends: a sequence that
it cuts hands its state on in float32, and sequences know nothing of each other.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from hotstart.kernels.ops import GdnDims
from hotstart.kernels.space import LaunchSpace

__all__ = ["WORKSPACE_BYTES", "Slab", "Workspace", "slab_limit", "slabs", "warmup"]

# The most that a call takes.  One sequence alone gains nothing from more than this part of it.
WORKSPACE_BYTES = 96 << 20
_ALONE = 0.6


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
) -> tuple[Slab, ...]:
    """All chunks, in slabs of at most `most`: each ends where the GPU has most to do at once.

    The scan has a program for each head of each sequence, and takes as long as the longest of them, once more for each
    time that they exceed the multiprocessors.
    """
    counts = [-(-length // chunk_length) for length in lengths]
    ends = list(accumulate(counts))
    found = []
    begin = first = 0
    while first < len(ends):
        if ends[first] <= begin:
            first += 1
            continue
        best, best_rate, longest = Slab(first, 0, begin, begin, 0), 0.0, 0
        for last in range(first, len(ends)):
            end = min(ends[last], begin + (most if last > first else max(1, int(most * _ALONE))))
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
    """Elements of one chunk's part of each tensor in a Workspace: first those of 2 or 4 bytes, then float32."""

    q: int
    k: int
    z: int
    x: int
    factors: int
    decays: int

    @classmethod
    def of(cls, dims: GdnDims, chunk_length: int) -> "ChunkSizes":
        H, HV, K, C = dims.num_key_heads, dims.num_value_heads, dims.key_dim, chunk_length
        qk = C * H * K if dims.conv_width > 1 else 0
        return cls(qk, qk, HV * K * C, HV * C * C, 2 * HV * C, HV)

    def num_bytes(self, itemsize: int) -> int:
        return itemsize * sum(self[:4]) + 4 * sum(self[4:])


def _carry(dims: GdnDims) -> int:
    return dims.num_value_heads * dims.value_dim * dims.key_dim


def slab_limit(dims: GdnDims, chunk_length: int, itemsize: int) -> int:
    """Chunks that fit the workspace."""
    chunk = ChunkSizes.of(dims, chunk_length).num_bytes(itemsize)
    return max(1, (WORKSPACE_BYTES - 2 * 4 * _carry(dims)) // chunk)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Two allocations, of undefined content."""

    q: Tensor  # [chunks, C, H * K], after the convolution; empty where there is none
    k: Tensor
    z: Tensor  # [chunks, HV, K, C]
    x: Tensor  # [chunks, HV, C, C]
    factors: Tensor  # [chunks, HV, 2, C] float32
    decays: Tensor  # [chunks, HV] float32
    carries: tuple[Tensor, Tensor]  # [HV, V, K] float32: the state from the slab before, and for the one after

    @classmethod
    def take(cls, dims: GdnDims, chunk_length: int, operand: torch.dtype, like: Tensor, num_chunks: int) -> "Workspace":
        """For slabs of at most `num_chunks` chunks; q and k are in the dtype of `like`."""
        sizes = [num_chunks * size for size in ChunkSizes.of(dims, chunk_length)]
        carry = _carry(dims)
        tiles = torch.empty(sum(sizes[:4]), dtype=operand, device=like.device)
        floats = torch.empty(sum(sizes[4:]) + 2 * carry, dtype=torch.float32, device=like.device)
        q, k, z, x = tiles.split_with_sizes(sizes[:4])
        carry_in, carry_out, factors, decays = floats.split_with_sizes([carry, carry, *sizes[4:]])
        if like.dtype != operand:
            q, k = q.view(like.dtype), k.view(like.dtype)
        return cls(q, k, z, x, factors, decays, (carry_in, carry_out))


def warmup(space: LaunchSpace) -> None:
    """Of every kernel that works on these: the op that launches them all, which imports them."""
    from hotstart.kernels import gdn_chunked

    gdn_chunked.warmup(space)
