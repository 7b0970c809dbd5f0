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


class ChunkBytes(NamedTuple):
    """Bytes of one chunk's part of each tensor in a Workspace."""

    qk: int
    z: int
    x: int
    vectors: int
    factors: int

    @classmethod
    def of(cls, dims: GdnDims, chunk_length: int, itemsize: int) -> "ChunkBytes":
        H, HV, K, C = dims.num_key_heads, dims.num_value_heads, dims.key_dim, chunk_length
        qk = C * H * K * itemsize if dims.conv_width > 1 else 0
        return cls(qk, HV * K * C * itemsize, HV * C * C * itemsize, 2 * HV * C * 4, 2 * HV * C * 4)

    @property
    def total(self) -> int:
        return sum(self) + self.qk


def carry_bytes(dims: GdnDims) -> int:
    return dims.num_value_heads * dims.value_dim * dims.key_dim * 4


def slab_limit(dims: GdnDims, chunk_length: int, itemsize: int) -> int:
    """Chunks that fit the workspace."""
    return max(1, (WORKSPACE_BYTES - 2 * carry_bytes(dims)) // ChunkBytes.of(dims, chunk_length, itemsize).total)


@dataclass(frozen=True, slots=True)
class Workspace:
    """One allocation, of undefined content."""

    q: Tensor  # [chunks, C, H * K], after the convolution; empty where there is none
    k: Tensor
    z: Tensor  # [chunks, HV, K, C]
    x: Tensor  # [chunks, HV, C, C], first the solved systems
    vectors: Tensor  # [chunks, HV, 2, C] float32
    factors: Tensor  # [chunks, HV, 2, C] float32
    carries: tuple[Tensor, Tensor]  # [HV, V, K] float32: the state from the slab before, and for the one after

    @classmethod
    def take(cls, dims: GdnDims, chunk_length: int, operand: torch.dtype, like: Tensor, num_chunks: int) -> "Workspace":
        """For slabs of at most `num_chunks` chunks; q and k are in the dtype of `like`."""
        part, carry = ChunkBytes.of(dims, chunk_length, operand.itemsize), carry_bytes(dims)
        sizes = [num_chunks * size for size in (part.qk, part.qk, part.z, part.x, part.vectors, part.factors)]
        memory = torch.empty(sum(sizes) + 2 * carry, dtype=torch.uint8, device=like.device)
        q, k, z, x, vectors, factors, *carries = memory.split([*sizes, carry, carry])
        vectors, factors, carry_in, carry_out = (t.view(torch.float32) for t in (vectors, factors, *carries))
        return cls(
            q.view(like.dtype), k.view(like.dtype), z.view(operand), x.view(operand), vectors, factors,
            (carry_in, carry_out),
        )  # fmt: skip


def warmup(space: LaunchSpace) -> None:
    """Of every kernel that works on these: the op that launches them all, which imports them."""
    from hotstart.kernels import gdn_chunked

    gdn_chunked.warmup(space)
