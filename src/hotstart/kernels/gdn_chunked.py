"""gdn_prefill(): the mixer between its projections, for spans of many tokens; gated_delta_rule_chunked(): its core.

Four kernels: conv (gdn_conv.py) for all chunks; prep (gdn_prep.py) and scan (gdn_scan.py) for one slab of them after
the other; gated norm (gdn_norm.py) for all.  The core is the middle two.  The mathematics is in gdn_prep.py, its
reference in gdn.py.  From sm_90 on a kernel starts while the one before it ends, loads what that one does not write,
and waits only then.  Where the scan of few sequences leaves multiprocessors idle, prep of the next slab works beside
it.

Tiles follow from the model and the GPU (gdn_tiles.py).  Only the scan has several cuts, by how many sequences and heads
it walks at once, and how far.  All compute every element in the same way, so the choice changes no bit.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.gdn_conv import launch_conv
from hotstart.kernels.gdn_norm import NORM_ROWS, launch_norm
from hotstart.kernels.gdn_prep import launch_prep
from hotstart.kernels.gdn_scan import launch_scan
from hotstart.kernels.gdn_slabs import Slab, slabs
from hotstart.kernels.gdn_tiles import mixer_tiles, scan_stages
from hotstart.kernels.gdn_workspace import Columns, columns, slab_limit, unit_of, workspace
from hotstart.kernels.launch import BoundLaunch, LaunchSpace
from hotstart.kernels.ops import GdnDims, GdnWeights
from hotstart.kernels.series import Call, Own, Series
from hotstart.kernels.step import PrefillInputs
from hotstart.kernels.target import Target, current_target
from hotstart.kernels.tiles import choices_made

__all__ = ["CHOICES", "gated_delta_rule_chunked", "gdn_prefill", "warmup"]

_LONG = 6  # chunks
_DESCRIPTOR_BYTES = 5 * 128  # of a program of the scan
_ENGINE_TYPES = (torch.bfloat16,)  # products take its tiles as they are


class Cut(NamedTuple):
    """One way for the scan to cut V, and to bring its tiles."""

    tiles: int
    engine: bool
    launch: BoundLaunch


class Cuts(NamedTuple):
    """Few programs at once or many, each for short sequences and long ones: descriptors of tiles cost time to make."""

    few_short: Cut
    few_long: Cut
    many_short: Cut
    many_long: Cut


class Constants(NamedTuple):
    """Launches of each kernel, and what their grids follow from."""

    dims: GdnDims
    dtype: torch.dtype
    gpu: Target
    widths: tuple[int, ...]  # of all dimensions after the first of packed, out, conv and state
    block_d: int
    conv: BoundLaunch
    prep: BoundLaunch
    cuts: Cuts
    norm: BoundLaunch


@functools.cache
def _constants(dims: GdnDims, C: int, dtype: torch.dtype, gpu: Target, choices: int) -> Constants:
    """For the mixer; without a convolution (width 1), for the rule alone.  `choices` counts those of tiles."""
    tiles = mixer_tiles(dims, C, dtype)
    H, HV, K, V, W = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim, dims.conv_width
    mixer = W > 1
    block_k, block_v = triton.next_power_of_2(K), triton.next_power_of_2(V)
    block_d = math.gcd(H * K, HV * V, tiles.conv.channels)  # a program has channels of q, of k or of v alone
    every = {"H": H, "HV": HV, "K": K, "V": V, "C": C}
    chunk = {**every, "UNIT": unit_of(dims), "BLOCK_K": block_k}
    rows = {**every, "ROW": dims.packed_width}
    gates = {
        "GATES": mixer,
        "GATE_ROW": dims.packed_width if mixer else HV,
        "G_OFFSET": dims.a_offset if mixer else 0,
        "BETA_OFFSET": dims.b_offset if mixer else 0,
        # Within a chunk all entries are at most 1: half precision has the digits.
        "HALF": tl.float32 if dtype == torch.float32 else tl.float16,
    }
    # The copy engine takes whole tiles; measured on Hopper alone.
    engine = gpu.arch == 90 and dtype in _ENGINE_TYPES and K == block_k >= 64 and V == block_v >= 64 and C == 64

    def scan(width: int, warps: int, tma: bool) -> Cut:
        most = tiles.scan.stages if tma else min(tiles.scan.stages, 2)
        options = {
            **chunk,
            "BLOCK_V": width,
            "TMA": tma,
            "STAGES": scan_stages(K, C, dtype.itemsize, width, most, gpu.shared_bytes),
            "num_warps": warps,
        }
        return Cut(-(-V // width), tma, launch_scan.bind(**options))

    few, many = (tiles.scan.narrow, tiles.scan.narrow_warps), (tiles.scan.wide, tiles.scan.wide_warps)
    return Constants(
        dims,
        dtype,
        gpu,
        (dims.packed_width, HV * V, W, dims.conv_channels, HV, V, K),
        block_d,
        conv=launch_conv.bind(
            **rows,
            W=W,
            UNIT=unit_of(dims),
            BLOCK_D=block_d,
            RUN=min(tiles.conv.run, C),
            BLOCK_W=triton.next_power_of_2(W),
            num_warps=tiles.conv.warps,
        ),
        prep=launch_prep.bind(**chunk, **gates, num_stages=1, num_warps=tiles.prep.warps, maxnreg=tiles.prep.registers),
        cuts=Cuts(scan(*few, False), scan(*few, engine), scan(*many, False), scan(*many, engine)),
        norm=launch_norm.bind(**rows, BLOCK_T=NORM_ROWS, BLOCK_V=block_v, num_warps=4),
    )


Choose = Callable[[Constants, Slab], Cut]


def _cut_for(at: Constants, slab: Slab) -> Cut:
    few = slab.num_sequences * at.dims.num_value_heads * at.cuts.few_long.tiles <= at.gpu.multiprocessors
    if slab.longest < _LONG:
        return at.cuts.few_short if few else at.cuts.many_short
    return at.cuts.few_long if few else at.cuts.many_long


def _always(index: int) -> Choose:
    return lambda at, slab: at.cuts[index]


CHOICES = tuple(_always(index) for index in range(len(Cuts._fields)))


def gdn_prefill(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    prefill: PrefillInputs,
    dims: GdnDims,
    out: Tensor,
    *,
    choose: Choose = _cut_for,
) -> None:
    """All tokens of the prefill spans: their rows of packed and out; states in place by slot.

    packed: [T, packed_width], whose q, k and v are undefined afterwards; conv: [slots, W, C]; state: [slots, HV, V, K];
    out: [T, HV * V], which also holds the convolved v, and then the rule's output, on the way.  No two sequences write
    one slot, and none reads a slot that another one writes.
    """
    if not prefill.num_chunks:
        return
    dtype, (num_rows, width) = packed.dtype, packed.shape
    C, lengths = prefill.chunk_length, prefill.lengths
    series, widths = _mixer(dims, C, dtype, current_target(), choices_made(), lengths, num_rows, choose)
    shapes = width, *out.shape[1:], *conv.shape[1:], *state.shape[1:]
    assert shapes == widths, f"columns of packed, out, conv and state: {shapes}, not {widths}"
    assert conv.dtype == dtype == out.dtype, (conv.dtype, dtype, out.dtype)
    series(
        packed, out, conv, state, weights.conv, weights.A_log, weights.dt_bias, weights.norm, prefill.chunks,
        prefill.read_slots, prefill.write_slots, prefill.context_lens, prefill.cu_seqlens, prefill.cu_chunks,
    )  # fmt: skip


def gated_delta_rule_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    prefill: PrefillInputs,
    out: Tensor,
    *,
    choose: Choose = _cut_for,
) -> None:
    """The rule alone: q, k [T, H, K], normed here; v, out [T, HV, V]; g, beta [T, HV] float32; states by slot."""
    if not prefill.num_chunks:
        return
    dims = GdnDims(k.shape[1], v.shape[1], k.shape[2], v.shape[2], conv_width=1, eps=0.0)
    C, lengths = prefill.chunk_length, prefill.lengths
    series = _rule_alone(dims, C, v.dtype, current_target(), choices_made(), lengths, v.shape[0], choose)
    series(
        q, k, v, g, beta, state, out, prefill.chunks, prefill.read_slots, prefill.write_slots, prefill.cu_seqlens,
        prefill.cu_chunks,
    )  # fmt: skip


# What the layers of a step share.
@functools.lru_cache(maxsize=8)
def _mixer(
    dims: GdnDims,
    C: int,
    dtype: torch.dtype,
    gpu: Target,
    choices: int,
    lengths: tuple[int, ...],
    num_rows: int,
    choose: Choose,
) -> tuple[Series, tuple[int, ...]]:
    """The launches of a step, and all dimensions after the first of packed, out, conv and state."""
    at, place = _constants(dims, C, dtype, gpu, choices), columns(dims, num_rows, dtype.itemsize)
    num_chunks = sum(-(-length // C) for length in lengths)
    qk, own = "packed", {}
    if place.apart:
        qk, own = "qk", {"qk": Own(dtype, num_rows * 2 * dims.num_key_heads * dims.key_dim)}
    calls = []
    for i, (channel, count) in enumerate(place.launches):
        blocks = count // at.block_d
        scalars = channel // at.block_d, blocks, int(i > 0), place.row, place.q_at, place.k_at
        pointers = f"packed conv conv_weight {qk} out chunks reads writes contexts ends"
        calls.append(Call(at.conv, pointers, (num_chunks * blocks,), scalars))
    on = f"{qk} {qk} out out", "packed packed A_log dt_bias"
    rule, work, scratch_bytes = _rule(at, C, lengths, num_rows, place, choose, *on)
    grid = (num_chunks * (C // NORM_ROWS) * dims.num_value_heads,)
    norm = Call(at.norm, "packed norm_weight out chunks", grid, (dims.eps,))
    tensors = "packed out conv state conv_weight A_log dt_bias norm_weight chunks reads writes contexts ends cu_chunks"
    return Series(tensors, [*calls, *rule, norm], own | work, scratch_bytes), at.widths


@functools.lru_cache(maxsize=8)
def _rule_alone(
    dims: GdnDims,
    C: int,
    dtype: torch.dtype,
    gpu: Target,
    choices: int,
    lengths: tuple[int, ...],
    num_rows: int,
    choose: Choose,
) -> Series:
    place = Columns(True, dims.num_key_heads * dims.key_dim // unit_of(dims), 0, 0, ())
    at = _constants(dims, C, dtype, gpu, choices)
    rule = _rule(at, C, lengths, num_rows, place, choose, "q k v out", "g beta g g")
    return Series("q k v g beta state out chunks reads writes ends cu_chunks", *rule)


def _rule(
    at: Constants,
    C: int,
    lengths: tuple[int, ...],
    num_rows: int,
    place: Columns,
    choose: Choose,
    qkvo: str,
    gates: str,
) -> tuple[list[Call], dict[str, Own], int]:
    """What both ops share, from q, k and v to the rule's outputs and states: launches, memory, scratch bytes."""
    HV = at.dims.num_value_heads
    alone = sum(length > 0 for length in lengths) == 1
    z_apart = place.z_at is None or not alone
    most = slab_limit(at.dims, C, at.dtype.itemsize, z_apart)
    todo, room, buffers, held = slabs(lengths, num_rows, C, most, HV, at.gpu.multiprocessors)
    own = workspace(at.dims, C, at.dtype, held, z_apart)
    work = f"{'z' if z_apart else 'packed'} x floats"
    prep_on = f"{' '.join(qkvo.split()[:2])} {gates} {work} chunks"
    scan_on = f"{qkvo} {work} state reads writes ends cu_chunks"
    z_place = (place.row, place.z_at, num_rows, 0)
    if z_apart:
        z_place = (at.dims.key_dim // unit_of(at.dims), 0, held * HV * C, 1)
    position = place.row, place.q_at, place.k_at, *z_place
    calls = []
    for i, slab in enumerate(todo):
        # With one buffer prep waits for the scan before, with two for nothing.
        is_beside = int(i > 0 and buffers > 1)
        grid = ((slab.end - slab.begin) * HV,)
        calls.append(Call(at.prep, prep_on, grid, (slab.begin, is_beside, *position, i % buffers * room)))
        cut = choose(at, slab)
        grid = (slab.num_sequences * HV * cut.tiles,)
        extent = slab.first_sequence, slab.begin, slab.end, num_rows
        calls.append(Call(cut.launch, scan_on, grid, (*extent, *position, i % buffers * room, i % 2)))
    # Descriptors of tiles: each scan waits for the one before it and then writes its own.  For as many programs as a
    # step of so many rows can have, whatever its lengths: none takes more than start-up's.
    at_once = 1 if alone else held
    programs = max(
        at.gpu.multiprocessors, at_once * HV * at.cuts.many_long.tiles, *(call.grid[0] for call in calls[1::2])
    )
    scratch_bytes = _DESCRIPTOR_BYTES * programs if at.cuts.many_long.engine else 0
    return calls, own, scratch_bytes


def warmup(space: LaunchSpace) -> None:
    """The op of the layers, once with each cut of the scan."""
    dims = space.gdn
    if dims is None or space.gdn_prefill != "triton":
        return
    prefill = space.step(space.device).prefill
    for dtype in space.activation_dtypes:
        packed, weights, conv, state = space.gdn_inputs(dims, dtype)
        out = space.tokens(dims.num_value_heads * dims.value_dim, dtype)
        for choose in CHOICES:
            gdn_prefill(packed, weights, conv, state, prefill, dims, out, choose=choose)
