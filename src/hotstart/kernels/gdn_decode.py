"""One token of the Gated DeltaNet mixer for each decoding sequence: states are read and written in place, by slot.

The mathematics and the reference are in gdn.py.  One launch: a program owns one value head of one sequence, so that its
state has one reader and one writer.  Several value heads read the inputs of one key head, and the first of them writes
the new ones: into a row of the ring (causal_conv.py) that nobody reads.

With a = exp(g), reading the old state once is enough, because S' = a S + d k^T:

    p = S k;  r = S q;  d = beta (v - a p);  o = a r + (k.q) d

A state passes tile by tile, and while one is worked on, the next ones are on their way: five programs share a
multiprocessor of sm_90, each with five tiles of 8 KiB under way.  Tiles are fixed: a kernel that works in place is
never tuned.
"""

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel, launches_overlap
from hotstart.kernels.ops import DecodeStep, GdnDims, GdnWeights

__all__ = ["gdn_decode"]

_TILE_ROWS, _STAGES, _PIECE = 16, 6, 128


@triton.jit
def _convolved(
    packed_ptr, conv_ptr, weight_ptr, i_n, read, position, o_c, m_c,
    CHANNELS: tl.constexpr, W: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """u of the channels o_c, of which an offset in the row of a ring is enough: 32 bits."""
    b_x = tl.load(packed_ptr + i_n * ROW + o_c, mask=m_c, other=0)
    b_u = b_x.to(tl.float32) * tl.load(weight_ptr + o_c * W + W - 1, mask=m_c, other=0).to(tl.float32)
    for j in tl.static_range(W - 1):
        p_row = conv_ptr + (read * W + (position + 1 + j) % W) * CHANNELS
        b_x = tl.load(p_row + o_c, mask=m_c & (read >= 0), other=0)
        b_u += b_x.to(tl.float32) * tl.load(weight_ptr + o_c * W + j, mask=m_c, other=0).to(tl.float32)
    return b_u * tl.sigmoid(b_u)


@triton.jit
def _keep_inputs(
    packed_ptr, conv_ptr, i_n, read, write, position, o_c, m_c,
    CHANNELS: tl.constexpr, W: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """The new inputs of the channels o_c; in another slot than the one that was read, the old ones too."""
    b_x = tl.load(packed_ptr + i_n * ROW + o_c, mask=m_c, other=0)
    tl.store(conv_ptr + (write * W + position % W) * CHANNELS + o_c, b_x, mask=m_c)
    if read != write:
        for j in tl.static_range(1, W):
            i_w = (position + j) % W
            b_x = tl.load(conv_ptr + (read * W + i_w) * CHANNELS + o_c, mask=m_c & (read >= 0), other=0)
            tl.store(conv_ptr + (write * W + i_w) * CHANNELS + o_c, b_x, mask=m_c)


@kernel
def _gdn_step_kernel(
    packed_ptr,  # [T, ROW]
    weight_ptr,  # [CHANNELS, W]
    A_log_ptr,  # [HV]
    dt_bias_ptr,  # [HV]
    norm_ptr,  # [V]
    conv_ptr,  # [slots, W, CHANNELS]
    state_ptr,  # [slots, HV, V, K]
    context_lens_ptr,  # [N]
    read_slots_ptr,  # [N]
    write_slots_ptr,  # [N]
    y_ptr,  # [T, HV, V]
    scale: tl.float32,
    eps: tl.float32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_K: tl.constexpr,
    J: tl.constexpr,
    BLOCK_V: tl.constexpr,
    NUM_TILES: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: sequence x value head."""
    if OVERLAP:
        gdc_wait()
    CHANNELS: tl.constexpr = 2 * H * K + HV * V
    EXACT: tl.constexpr = K == BLOCK_K and V == NUM_TILES * BLOCK_V  # then no mask is needed
    i_p = tl.program_id(0)
    i_n, i_h = (i_p // HV).to(tl.int64), i_p % HV
    i_k = i_h // (HV // H)
    read = tl.load(read_slots_ptr + i_n).to(tl.int64)
    write = tl.load(write_slots_ptr + i_n).to(tl.int64)
    if write < 0:
        return
    position = tl.load(context_lens_ptr + i_n) - 1
    # K is cut into pieces of J: with the pieces as the slowest dim, a thread holds few rows and pieces of all of them,
    # so that a vector over V costs few registers and a sum over K few exchanges between threads.
    o_k = tl.arange(0, BLOCK_K // J)[:, None] * J + tl.arange(0, J)[None, :]
    o_v = tl.arange(0, BLOCK_V)
    o_row = tl.arange(0, NUM_TILES * BLOCK_V)
    o_tile = tl.arange(0, NUM_TILES)[:, None] * BLOCK_V + o_v[None, :]
    m_k, m_row, m_tile = (o_k < K) | EXACT, (o_row < V) | EXACT, (o_tile < V) | EXACT

    o_qk = tl.arange(0, 2 * BLOCK_K)
    m_qk = (o_qk % BLOCK_K < K) | EXACT
    o_qk = (o_qk // BLOCK_K * H + i_k) * K + o_qk % BLOCK_K
    inputs = packed_ptr, conv_ptr, weight_ptr, i_n, read, position
    b_qk = tl.reshape(_convolved(*inputs, o_qk, m_qk, CHANNELS, W, ROW), [2, BLOCK_K // J, J])
    o_row += 2 * H * K + i_h * V
    b_vs = _convolved(*inputs, o_row, m_row, CHANNELS, W, ROW)
    p_row = packed_ptr + i_n * ROW + CHANNELS
    beta = tl.sigmoid(tl.load(p_row + HV * V + i_h).to(tl.float32))
    x = tl.load(p_row + HV * V + HV + i_h).to(tl.float32) + tl.load(dt_bias_ptr + i_h)
    softplus = tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20))))
    decay = tl.exp(-tl.exp(tl.load(A_log_ptr + i_h)) * softplus)
    b_z = tl.load(p_row + i_h * V + o_tile, mask=m_tile, other=0).to(tl.float32)
    b_w = tl.load(norm_ptr + o_tile, mask=m_tile, other=0)
    b_qk *= tl.rsqrt(tl.sum(tl.sum(b_qk * b_qk, axis=2), axis=1) + 1e-6)[:, None, None]
    is_q = (tl.arange(0, 2) == 0)[:, None, None]
    b_q = tl.sum(tl.where(is_q, b_qk, 0.0), axis=0) * scale
    b_k = tl.sum(tl.where(is_q, 0.0, b_qk), axis=0)
    kq = tl.sum(b_k * b_q)

    p_old = state_ptr + (read * HV + i_h) * (V * K)
    p_new = state_ptr + (write * HV + i_h) * (V * K)
    b_o = tl.zeros([NUM_TILES, BLOCK_V], tl.float32)
    for i in tl.range(NUM_TILES, num_stages=STAGES):
        o_s = (i * BLOCK_V + o_v)[None, :, None] * K + o_k[:, None, :]  # [BLOCK_K / J, BLOCK_V, J]
        m_s = ((i * BLOCK_V + o_v < V) | EXACT)[None, :, None] & m_k[:, None, :]
        b_s = tl.load(p_old + o_s, mask=m_s & (read >= 0), other=0).to(tl.float32)
        b_v = tl.gather(b_vs, i * BLOCK_V + o_v, 0)
        b_p = tl.sum(tl.sum(b_s * b_k[:, None, :], axis=0), axis=1)
        b_r = tl.sum(tl.sum(b_s * b_q[:, None, :], axis=0), axis=1)
        b_d = beta * (b_v - decay * b_p)
        b_s = decay * b_s + b_d[None, :, None] * b_k[:, None, :]
        tl.store(p_new + o_s, b_s.to(state_ptr.dtype.element_ty), mask=m_s)
        b_o += tl.where((tl.arange(0, NUM_TILES) == i)[:, None], (decay * b_r + kq * b_d)[None, :], 0.0)

    b_y = b_o * tl.rsqrt(tl.sum(b_o * b_o) / V + eps) * b_w * b_z * tl.sigmoid(b_z)
    tl.store(y_ptr + (i_n * HV + i_h) * V + o_tile, b_y.to(y_ptr.dtype.element_ty), mask=m_tile)
    slot = packed_ptr, conv_ptr, i_n, read, write, position
    _keep_inputs(*slot, o_row, m_row, CHANNELS, W, ROW)
    if i_h % (HV // H) == 0:
        _keep_inputs(*slot, o_qk, m_qk, CHANNELS, W, ROW)


def gdn_decode(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    decode: DecodeStep,
    dims: GdnDims,
    out: Tensor,
) -> None:
    """One token of each decoding sequence: rows [0, N) of packed and out; states in place by slot.

    packed: [T, packed_width]; conv: [slots, W, C]; state: [slots, HV, V, K], float32 or bfloat16;
    out: [T, HV * V].  No two sequences write one slot, and none reads a slot that another one writes.
    """
    HV, K, V = dims.num_value_heads, dims.key_dim, dims.value_dim
    at = _constants(dims, launches_overlap())
    assert packed.shape[1] == at.packed_width and out.shape[1] == HV * V, (packed.shape, out.shape)
    assert conv.shape[1:] == at.conv_shape and state.shape[1:] == (HV, V, K), (conv.shape, state.shape)
    assert conv.dtype == packed.dtype, (conv.dtype, packed.dtype)
    at.launch(
        (decode.write_slots.shape[0] * HV,), packed, weights.conv, weights.A_log, weights.dt_bias, weights.norm, conv,
        state, decode.context_lens, decode.read_slots, decode.write_slots, out, at.scale, dims.eps,
    )  # fmt: skip


class Constants(NamedTuple):
    launch: BoundLaunch
    packed_width: int
    conv_shape: tuple[int, int]
    scale: float


@functools.cache
def _constants(dims: GdnDims, overlap: bool) -> Constants:
    block_k, rows = (triton.next_power_of_2(d) for d in (dims.key_dim, dims.value_dim))
    block_v = min(rows, _TILE_ROWS)
    launch = _launch_gdn_step.bind(
        H=dims.num_key_heads,
        HV=dims.num_value_heads,
        K=dims.key_dim,
        V=dims.value_dim,
        W=dims.conv_width,
        ROW=dims.packed_width,
        BLOCK_K=block_k,
        J=min(block_k, _PIECE),
        BLOCK_V=block_v,
        NUM_TILES=rows // block_v,
        STAGES=_STAGES if block_k <= 128 else 3,
        OVERLAP=overlap,
        launch_pdl=overlap,
        num_warps=4,
        **({"maxnreg": 96} if block_k <= 128 else {}),
    )
    return Constants(launch, dims.packed_width, (dims.conv_width, dims.conv_channels), dims.key_dim**-0.5)


def _warmup(space: LaunchSpace) -> None:
    dims = space.gdn
    if dims is None:
        return
    for dtype in space.activation_dtypes:
        packed, weights, conv, state = space.gdn_inputs(dims, dtype)
        out = space.tokens(dims.num_value_heads * dims.value_dim, dtype)
        gdn_decode(packed, weights, conv, state, space.step(space.device).decode, dims, out)


_launch_gdn_step = Launcher(_gdn_step_kernel, warmup=_warmup, in_place=True)
