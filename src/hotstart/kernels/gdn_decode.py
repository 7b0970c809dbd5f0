"""One token of the Gated DeltaNet mixer for each decoding sequence: states are read and written in place, by slot.

The mathematics and the reference are in gdn.py.  One launch: a program owns one value head of one sequence, so that its
state has one reader and one writer.  Several value heads read the inputs of one key head, and the first of them writes
the new ones: into a row of the ring (causal_conv.py) that nobody reads.

With a = exp(g), reading the old state once is enough, because S' = a S + d k^T:

    p = S k;  r = S q;  d = beta (v - a p);  o = a r + (k.q) d

A program asks for all it needs before it computes anything: one wait for memory is most of its time.  The state is in
its registers, 128 a thread at 128 x 128, and two programs share a multiprocessor.  From sm_90 on it is asked for while
the kernel before this one ends, which writes the packed rows and neither slots nor states.  Nothing here is tuned: the
kernel works in place.
"""

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.gdn_math import L2_EPS, bounded, log_decay
from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel
from hotstart.kernels.ops import GdnDims, GdnWeights
from hotstart.kernels.step import DecodeInputs

__all__ = ["gdn_decode"]


@triton.jit
def _inputs(
    packed_ptr, conv_ptr, weight_ptr, i_n, read, position, o_c, m_c,
    CHANNELS: tl.constexpr, W: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """The last W inputs of the channels o_c, and their taps.  An offset in a row has 32 bits."""
    b_xs = ()
    b_ws = ()
    for j in tl.static_range(W):
        if j < W - 1:
            p_row = conv_ptr + (read * W + (position + 1 + j) % W) * CHANNELS
            b_xs += (tl.load(p_row + o_c, m_c & (read >= 0), 0),)
        else:
            b_xs += (tl.load(packed_ptr + i_n * ROW + o_c, m_c, 0),)
        b_ws += (tl.load(weight_ptr + o_c * W + j, m_c, 0),)
    return b_xs, b_ws


@triton.jit
def _convolved(b_xs, b_ws, W: tl.constexpr):
    b_u = b_xs[0].to(tl.float32) * b_ws[0].to(tl.float32)
    for j in tl.static_range(1, W):
        b_u += b_xs[j].to(tl.float32) * b_ws[j].to(tl.float32)
    return bounded(b_u * tl.sigmoid(b_u))


@triton.jit
def _bring_inputs(conv_ptr, read, write, position, o_c, m_c, CHANNELS: tl.constexpr, W: tl.constexpr):
    """The old inputs, from the slot that was read to the one that is written."""
    for j in tl.static_range(1, W):
        i_w = (position + j) % W
        b_x = tl.load(conv_ptr + (read * W + i_w) * CHANNELS + o_c, m_c & (read >= 0), 0)
        tl.store(conv_ptr + (write * W + i_w) * CHANNELS + o_c, b_x, m_c)


@triton.jit
def _columns(b_qk, o_j, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, J: tl.constexpr, PIECES: tl.constexpr):
    """q and k in columns of J, as they are; what sums to q.q, k.k and k.q.  In every row the same, so that lengths need
    no word between warps.
    """
    b_qq = tl.zeros([BLOCK_V, J], tl.float32)
    b_kk = tl.zeros([BLOCK_V, J], tl.float32)
    b_kq = tl.zeros([BLOCK_V, J], tl.float32)
    b_qs = ()
    b_ks = ()
    for i in tl.static_range(PIECES):
        b_q = tl.gather(b_qk, i * J + o_j, 0)[None, :]
        b_k = tl.gather(b_qk, BLOCK_K + i * J + o_j, 0)[None, :]
        b_qq += b_q * b_q
        b_kk += b_k * b_k
        b_kq += b_k * b_q
        b_qs += (b_q,)
        b_ks += (b_k,)
    return b_qs, b_ks, b_qq, b_kk, b_kq


@triton.jit
def _product(b_ss, b_xs, BLOCK_V: tl.constexpr, J: tl.constexpr, PIECES: tl.constexpr):
    """S x, with both in columns of J."""
    b_y = tl.zeros([BLOCK_V, J], tl.float32)
    for i in tl.static_range(PIECES):
        b_y += b_ss[i].to(tl.float32) * b_xs[i]
    return tl.sum(b_y, axis=1)


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
    BLOCK_V: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: sequence x value head."""
    CHANNELS: tl.constexpr = 2 * H * K + HV * V
    EXACT: tl.constexpr = K == BLOCK_K and V == BLOCK_V  # then no mask is needed
    i_n, i_h = (tl.program_id(0) // HV).to(tl.int64), tl.program_id(0) % HV
    i_k, is_first = i_h // (HV // H), i_h % (HV // H) == 0
    read = tl.load(read_slots_ptr + i_n).to(tl.int64)
    write = tl.load(write_slots_ptr + i_n).to(tl.int64)
    position = tl.load(context_lens_ptr + i_n) - 1
    if write < 0:
        if OVERLAP:
            gdc_wait()  # who waits for this kernel waits for all before it
        return

    o_v = tl.arange(0, BLOCK_V)
    m_v = (o_v < V) | EXACT
    # The state in columns of J: a thread has parts of all of K of few rows, and a sum over K takes few exchanges.
    J: tl.constexpr = BLOCK_K if BLOCK_K < 32 else 32
    PIECES: tl.constexpr = BLOCK_K // J
    o_j = tl.arange(0, J)
    o_s = o_v[:, None] * K + o_j[None, :]
    p_old = state_ptr + (read * HV + i_h) * (V * K)
    p_new = state_ptr + (write * HV + i_h) * (V * K)
    b_ss = ()
    for i in tl.static_range(PIECES):
        m_s = m_v[:, None] & ((i * J + o_j < K) | EXACT)[None, :]
        b_ss += (tl.load(p_old + i * J + o_s, m_s & (read >= 0), 0),)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    # Else the assembler keeps requests back, to save registers, until the inputs are there.
    tl.debug_barrier()
    o_qk = tl.arange(0, 2 * BLOCK_K)
    m_qk = (o_qk % BLOCK_K < K) | EXACT
    o_qk = (o_qk // BLOCK_K * H + i_k) * K + o_qk % BLOCK_K
    o_vc = 2 * H * K + i_h * V + o_v
    sources = packed_ptr, conv_ptr, weight_ptr, i_n, read, position
    b_xqk, b_wqk = _inputs(*sources, o_qk, m_qk, CHANNELS, W, ROW)
    b_xv, b_wv = _inputs(*sources, o_vc, m_v, CHANNELS, W, ROW)
    p_row = packed_ptr + i_n * ROW + CHANNELS
    b_b = tl.load(p_row + HV * V + i_h).to(tl.float32)
    b_a = tl.load(p_row + HV * V + HV + i_h).to(tl.float32) + tl.load(dt_bias_ptr + i_h)
    b_A = tl.load(A_log_ptr + i_h)
    b_z = tl.load(p_row + i_h * V + o_v, m_v, 0)
    b_w = tl.load(norm_ptr + o_v, m_v, 0)
    beta = tl.sigmoid(b_b)
    decay = tl.exp(log_decay(b_a, b_A))
    p_ring = conv_ptr + (write * W + position % W) * CHANNELS
    tl.store(p_ring + o_qk, b_xqk[W - 1], m_qk & is_first)
    tl.store(p_ring + o_vc, b_xv[W - 1], m_v)
    b_v = tl.gather(_convolved(b_xv, b_wv, W), o_v, 0)
    b_qk = _convolved(b_xqk, b_wqk, W)
    b_qs, b_ks, b_qq, b_kk, b_kq = _columns(b_qk, o_j, BLOCK_K, BLOCK_V, J, PIECES)
    b_rq = tl.rsqrt(tl.sum(b_qq, axis=1) + L2_EPS) * scale
    b_rk = tl.rsqrt(tl.sum(b_kk, axis=1) + L2_EPS)

    b_p = _product(b_ss, b_ks, BLOCK_V, J, PIECES)
    b_r = _product(b_ss, b_qs, BLOCK_V, J, PIECES)
    b_d = beta * (b_v - decay * b_rk * b_p)
    b_o = b_rq * (decay * b_r + b_rk * tl.sum(b_kq, axis=1) * b_d)
    b_d *= b_rk
    for i in tl.static_range(PIECES):
        m_s = m_v[:, None] & ((i * J + o_j < K) | EXACT)[None, :]
        b_s = decay * b_ss[i].to(tl.float32) + b_d[:, None] * b_ks[i]
        tl.store(p_new + i * J + o_s, b_s.to(state_ptr.dtype.element_ty), m_s)

    b_z = b_z.to(tl.float32)
    b_y = b_o * tl.rsqrt(tl.sum(b_o * b_o) / V + eps) * b_w * b_z * tl.sigmoid(b_z)
    tl.store(y_ptr + (i_n * HV + i_h) * V + o_v, b_y.to(y_ptr.dtype.element_ty), m_v)
    if read != write:
        _bring_inputs(conv_ptr, read, write, position, o_vc, m_v, CHANNELS, W)
        _bring_inputs(conv_ptr, read, write, position, o_qk, m_qk & is_first, CHANNELS, W)


def gdn_decode(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    decode: DecodeInputs,
    dims: GdnDims,
    out: Tensor,
) -> None:
    """One token of each decoding sequence: rows [0, N) of packed and out; states in place by slot.

    packed: [T, packed_width]; conv: [slots, W, C]; state: [slots, HV, V, K], float32 or bfloat16;
    out: [T, HV * V].  No two sequences write one slot, and none reads a slot that another one writes.  The launch just
    before this one may write packed, but not the states, nor what decode says: those are read while it ends.
    """
    HV, K, V = dims.num_value_heads, dims.key_dim, dims.value_dim
    at = _constants(dims)
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
def _constants(dims: GdnDims) -> Constants:
    block_k, block_v = (triton.next_power_of_2(d) for d in (dims.key_dim, dims.value_dim))
    launch = _launch_gdn_step.bind(
        H=dims.num_key_heads,
        HV=dims.num_value_heads,
        K=dims.key_dim,
        V=dims.value_dim,
        W=dims.conv_width,
        ROW=dims.packed_width,
        BLOCK_K=block_k,
        BLOCK_V=block_v,
        num_warps=4 if block_k * block_v <= 128 * 128 else 16,
        maxnreg=255 if block_k * block_v <= 128 * 128 else 128,
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
