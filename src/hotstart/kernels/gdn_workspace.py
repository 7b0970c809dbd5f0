"""What the kernels of the chunked Gated DeltaNet rule tell each other, in constant memory.

A slab (gdn_slabs.py) is a run of chunks whose products fit the workspace.
"""

import math
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
    "columns",
    "slab_limit",
    "unit_of",
    "warmup",
    "workspace",
    "x_and_factors",
    "z_of_head",
]

WORKSPACE_BYTES = 104 << 20  # the most that a call takes
APART_BYTES = 16 << 20  # up to here q and k have memory of their own, and one launch convolves all


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
