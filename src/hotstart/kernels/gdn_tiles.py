"""What there is to choose for the prefill kernels of the Gated DeltaNet mixer: the safe default first, then the rest.

The norm has fixed tiles, since it works in place.  The scan has two cuts of V, one for few heads and one for many, and
a step's size decides which runs: so both give a warp sixteen rows of the state, and no element is computed otherwise.
"""

import functools
from dataclasses import dataclass

import torch
import triton

from hotstart.kernels.gdn_conv import launch_conv
from hotstart.kernels.gdn_prep import launch_prep
from hotstart.kernels.gdn_scan import launch_scan
from hotstart.kernels.ops import GdnDims
from hotstart.kernels.space import LaunchSpace
from hotstart.kernels.target import Target
from hotstart.kernels.tiles import Trial, Tunable

__all__ = ["ConvTiles", "MixerTiles", "PrepTiles", "RuleShape", "ScanTiles", "mixer_tiles", "scan_stages"]

KIB = 1024


@dataclass(frozen=True, slots=True)
class RuleShape:
    """The family: what decides which tiles are best."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    chunk_length: int
    dtype: str

    @classmethod
    @functools.cache
    def of(cls, dims: GdnDims, chunk_length: int, dtype: torch.dtype) -> "RuleShape":
        sizes = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim
        return cls(*sizes, chunk_length, str(dtype).removeprefix("torch."))


@dataclass(frozen=True, slots=True)
class ConvTiles:
    channels: int
    run: int  # tokens of a thread
    warps: int


@dataclass(frozen=True, slots=True)
class PrepTiles:
    warps: int
    registers: int | None  # a thread; None leaves it to the compiler


@dataclass(frozen=True, slots=True)
class ScanTiles:
    """Rows of V, and warps, of a program of either cut; stages where their tiles fit the shared memory."""

    narrow: int
    narrow_warps: int
    wide: int
    wide_warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class MixerTiles:
    conv: ConvTiles
    prep: PrepTiles
    scan: ScanTiles


def mixer_tiles(dims: GdnDims, chunk_length: int, dtype: torch.dtype) -> MixerTiles:
    shape = RuleShape.of(dims, chunk_length, dtype)
    return MixerTiles(_conv(shape), _prep(shape), _scan(shape))


def _scan_bytes(key_dim: int, C: int, itemsize: int, block_v: int, stages: int) -> int:
    """Shared memory of the scan: q, k, z and x for each stage, v for all but one, and what conversions take.

    With stages, the state's conversion on its way in uses their memory.
    """
    K: int = triton.next_power_of_2(key_dim)
    tiles = stages * (3 * C * K + C * C) * itemsize + (stages - 1) * C * block_v * itemsize + 6 * KIB
    state = block_v * K * 4
    return max(tiles, state) if stages > 1 else tiles + state


def _families(space: LaunchSpace) -> tuple[RuleShape, ...]:
    if space.gdn is None or space.gdn_prefill != "triton":
        return ()
    chunk_length = space.step(torch.device("meta")).prefill.chunk_length
    return tuple(RuleShape.of(space.gdn, chunk_length, dtype) for dtype in space.activation_dtypes)


def _trial(space: LaunchSpace, shape: RuleShape, lengths: tuple[int, ...]) -> Trial:
    from hotstart.kernels.gdn_chunked import gdn_prefill  # which launches with these tiles

    assert space.gdn is not None
    dims, dtype = space.gdn, getattr(torch, shape.dtype)
    prefill = space.prompts(space.device, lengths).prefill
    packed, weights, conv, state = space.sized(sum(lengths), len(lengths)).gdn_inputs(dims, dtype)
    packed.normal_()  # zeros draw less power, and run faster
    weights.conv.normal_()
    out = space.empty(sum(lengths), dims.num_value_heads * dims.value_dim, dtype=dtype)

    def call() -> None:
        gdn_prefill(packed, weights, conv, state, prefill, dims, out)

    return Trial(call, (packed, conv, state, out))


def _conv_candidates(target: Target, shape: RuleShape) -> tuple[ConvTiles, ...]:
    return tuple(ConvTiles(*c) for c in ((128, 8, 4), (64, 4, 4), (256, 16, 4), (64, 8, 2)))


def _prep_candidates(target: Target, shape: RuleShape) -> tuple[PrepTiles, ...]:
    few, most = PrepTiles(4, 128), PrepTiles(4, None)
    # Where products take their operands from shared memory, few registers hold the rest.
    first = (few, most) if target.arch in (90, 100, 103) else (most, few)
    return *first, PrepTiles(4, 168), PrepTiles(8, None)


def _scan_candidates(target: Target, shape: RuleShape) -> tuple[ScanTiles, ...]:
    block_v, itemsize = triton.next_power_of_2(shape.value_dim), getattr(torch, shape.dtype).itemsize
    pairs = _scan_pairs(target, triton.next_power_of_2(shape.key_dim))
    cuts = [_within(*few, block_v) + _within(*many, block_v) for few, many in pairs]
    found = []
    for cut in dict.fromkeys(cuts):
        widths = cut[0], cut[2]
        most = max(scan_stages(shape.key_dim, shape.chunk_length, itemsize, w, 3, target.shared_bytes) for w in widths)
        found += [ScanTiles(*cut, stages) for stages in range(most, 0, -1)]
    return tuple(found)


def scan_stages(key_dim: int, C: int, itemsize: int, block_v: int, most: int, shared_bytes: int) -> int:
    """As many as fit, up to `most`; in float32 never more than one."""
    fitting = (
        s for s in range(most, 1, -1) if itemsize < 4 and _scan_bytes(key_dim, C, itemsize, block_v, s) <= shared_bytes
    )
    return next(fitting, 1)


_Cut = tuple[int, int]  # rows of V, warps


def _scan_pairs(target: Target, block_k: int) -> list[tuple[_Cut, _Cut]]:
    if target.arch >= 100:  # other numbers of warps have given other results from run to run there
        return [((32, 2), (32, 2))]
    if block_k > 128:
        return [((64, 4), (64, 4))]
    # A Hopper warp group is four warps: a cut of two would compute in another order than one of four.  There the few
    # have narrow programs and the many wide ones, so no other pair could be better at both.
    if target.arch == 90:
        return [((64, 4), (128, 8))]
    few = [((64, 4), (64, 4)), ((128, 8), (128, 8)), ((32, 2), (64, 4)), ((32, 2), (128, 8)), ((32, 2), (32, 2))]
    return [((64, 4), (128, 8)), *few]


def _within(width: int, warps: int, block_v: int) -> _Cut:
    return (width, warps) if width <= block_v else (block_v, min(warps, 4))


_conv = Tunable("gdn_conv", (launch_conv,), families=_families, candidates=_conv_candidates, trial=_trial)
_prep = Tunable("gdn_prep", (launch_prep,), families=_families, candidates=_prep_candidates, trial=_trial)
_scan = Tunable("gdn_scan", (launch_scan,), families=_families, candidates=_scan_candidates, trial=_trial)
