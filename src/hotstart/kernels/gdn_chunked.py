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
from triton import knobs
from triton.runtime import driver

from hotstart.kernels.gdn_conv import launch_conv
from hotstart.kernels.gdn_norm import launch_norm
from hotstart.kernels.gdn_prep import launch_prep
from hotstart.kernels.gdn_scan import launch_scan
from hotstart.kernels.gdn_tiles import mixer_tiles, scan_bytes, scan_stages
from hotstart.kernels.gdn_workspace import Columns, Slab, Workspace, columns, slab_limit, slabs, unit_of
from hotstart.kernels.launch import BoundLaunch, LaunchSpace, ReadyLaunch, launches_overlap
from hotstart.kernels.ops import GdnDims, GdnWeights, PrefillStep
from hotstart.kernels.tiles import choices_made

__all__ = ["CHOICES", "chunk_length_for", "gated_delta_rule_chunked", "gdn_prefill", "warmup"]

KIB = 1024
_NORM_ROWS = 16
_LONG = 6  # chunks
_DESCRIPTOR_BYTES = 5 * 128  # of a program of the scan
_ENGINE_TYPES = (torch.bfloat16,)  # products take its tiles as they are


class Gpu(NamedTuple):
    """What tiles depend on."""

    arch: int
    shared_bytes: int
    multiprocessors: int


def _gpu() -> Gpu:
    if knobs.runtime.interpret:
        return Gpu(80, 163 * KIB, 100)
    return _gpu_of(driver.active.get_current_device())


@functools.cache  # each stub is a device of its own, so the number is enough
def _gpu_of(device: int) -> Gpu:
    active = driver.active
    has: dict[str, int] = active.utils.get_device_properties(device)
    return Gpu(int(active.get_current_target().arch), has["max_shared_mem"], has["multiprocessor_count"])


def chunk_length_for(dims: GdnDims, dtype: torch.dtype) -> int:
    """Tokens of a chunk: the longest whose tiles fit the shared memory of the active GPU."""
    limit = _gpu().shared_bytes
    return next(C for C in (64, 32, 16) if C == 16 or scan_bytes(dims.key_dim, C, dtype.itemsize, 64, 1) <= limit)


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
    gpu: Gpu
    widths: list[int]  # of all dimensions after the first of packed, out, conv and state
    slab_chunks: int
    block_d: int
    conv: BoundLaunch
    prep: BoundLaunch
    cuts: Cuts
    norm: BoundLaunch


@functools.cache
def _constants(dims: GdnDims, C: int, dtype: torch.dtype, gpu: Gpu, choices: int) -> Constants:
    """For the mixer; without a convolution (width 1), for the rule alone.  `choices` counts those of tiles."""
    tiles, overlap = mixer_tiles(dims, C, dtype), launches_overlap()
    H, HV, K, V, W = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim, dims.conv_width
    mixer = W > 1
    block_k, block_v = triton.next_power_of_2(K), triton.next_power_of_2(V)
    block_d = math.gcd(H * K, HV * V, tiles.conv.channels)  # a program has channels of q, of k or of v alone
    every = {"H": H, "HV": HV, "K": K, "C": C, "OVERLAP": overlap, "launch_pdl": overlap}
    chunk = {**every, "V": V, "UNIT": unit_of(dims), "BLOCK_K": block_k}
    rows = {**every, "V": V, "ROW": dims.packed_width}
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
        gpu,
        [dims.packed_width, HV * V, W, dims.conv_channels, HV, V, K],
        slab_limit(dims, C, dtype.itemsize),
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
        norm=launch_norm.bind(**rows, BLOCK_T=_NORM_ROWS, BLOCK_V=block_v, num_warps=4),
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
    prefill: PrefillStep,
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
    HV, C, num_chunks = dims.num_value_heads, prefill.chunk_length, prefill.num_chunks
    if not num_chunks:
        return
    dtype, (num_rows, *widths) = packed.dtype, packed.shape
    at = _constants(dims, C, dtype, _gpu(), choices_made())
    widths += [*out.shape[1:], *conv.shape[1:], *state.shape[1:]]
    assert widths == at.widths, f"columns of packed, out, conv and state: {widths}, not {at.widths}"
    assert conv.dtype == dtype == out.dtype, (conv.dtype, dtype, out.dtype)
    place = columns(dims, num_rows, dtype.itemsize)
    qk = packed
    if place.apart:
        qk = torch.empty(num_rows, 2 * dims.num_key_heads * dims.key_dim, dtype=dtype, device=packed.device)
    convolve = at.conv.on(
        packed, conv, weights.conv, qk, out, prefill.chunks, prefill.read_slots, prefill.write_slots,
        prefill.context_lens, prefill.cu_seqlens,
    )  # fmt: skip
    for i, (channel, count) in enumerate(place.launches):
        blocks = count // at.block_d
        convolve((num_chunks * blocks,), channel // at.block_d, blocks, int(i > 0), place.row, place.q_at, place.k_at)
    _rule(qk, qk, out, out, (packed, packed, weights.A_log, weights.dt_bias), state, prefill, place, at, choose)
    at.norm((num_chunks * (C // _NORM_ROWS) * HV,), packed, weights.norm, out, prefill.chunks, dims.eps)


def gated_delta_rule_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    prefill: PrefillStep,
    out: Tensor,
    *,
    choose: Choose = _cut_for,
) -> None:
    """The rule alone: q, k [T, H, K], normed here; v, out [T, HV, V]; g, beta [T, HV] float32; states by slot."""
    if not prefill.num_chunks:
        return
    dims = GdnDims(k.shape[1], v.shape[1], k.shape[2], v.shape[2], conv_width=1, eps=0.0)
    at = _constants(dims, prefill.chunk_length, v.dtype, _gpu(), choices_made())
    place = Columns(True, k.shape[1] * k.shape[2] // unit_of(dims), 0, 0, ())
    _rule(q, k, v, out, (g, beta, g, g), state, prefill, place, at, choose)


def _rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    gates: tuple[Tensor, Tensor, Tensor, Tensor],
    state: Tensor,
    prefill: PrefillStep,
    place: Columns,
    at: Constants,
    choose: Choose,
) -> None:
    """What both ops share: from q, k and v to the rule's outputs and states."""
    C, HV, chunks = prefill.chunk_length, at.dims.num_value_heads, prefill.chunks
    todo, room, buffers, held = slabs(prefill.lengths, v.shape[0], C, at.slab_chunks, HV, at.gpu.multiprocessors)
    work = Workspace.take(at.dims, C, v.dtype, v.device, held)
    prep = at.prep.on(q, k, *gates, *work, chunks)
    scan_on = (q, k, v, o, *work, state, prefill.read_slots, prefill.write_slots, prefill.cu_seqlens, prefill.cu_chunks)
    scans: dict[Cut, ReadyLaunch] = {}
    position = place.row, place.q_at, place.k_at, room
    programs = max(at.gpu.multiprocessors, held * HV * at.cuts.many_long.tiles)
    triton.set_allocator(Descriptors(programs))
    for i, slab in enumerate(todo):
        # With one buffer prep waits for the scan before, with two for nothing.
        is_beside = int(i > 0 and buffers > 1)
        prep(((slab.end - slab.begin) * HV,), slab.begin, is_beside, *position, i % buffers)
        cut = choose(at, slab)
        if cut not in scans:
            scans[cut] = cut.launch.on(*scan_on)
        grid = (slab.num_sequences * HV * cut.tiles,)
        scans[cut](grid, slab.first_sequence, slab.begin, slab.end, v.shape[0], *position, i % buffers, i % 2)
    triton.set_allocator(_descriptor_memory)


def _descriptor_memory(num_bytes: int, alignment: int, stream: int | None) -> Tensor:
    """Triton asks for it at each launch of a kernel that uses the copy engine."""
    return torch.empty(num_bytes, dtype=torch.uint8, device="cuda")


class Descriptors:
    """The same, once for the scans of a call: each of them waits for the one before it and then writes its own."""

    __slots__ = ("_least_bytes", "_memory")

    def __init__(self, most_programs: int) -> None:
        """Memory for so many is taken, whatever the step: none takes more than start-up's."""
        self._least_bytes = _DESCRIPTOR_BYTES * most_programs
        self._memory: Tensor | None = None

    def __call__(self, num_bytes: int, alignment: int, stream: int | None) -> Tensor:
        if self._memory is None or self._memory.shape[0] < num_bytes:
            self._memory = _descriptor_memory(max(num_bytes, self._least_bytes), alignment, stream)
        return self._memory


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
