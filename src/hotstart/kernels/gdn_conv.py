"""Prefill of the Gated DeltaNet mixer, first kernel: u = silu(causal_conv(q | k | v)) of all chunks.

v goes to the output's memory, which the scan reads before it writes there; q and k go where gdn_workspace.py says,
which may be columns of the packed rows whose inputs an earlier launch was the last to read.  The first W - 1 outputs of
a span need the inputs before it: those of its conv slot, or zeros.  The slot itself, a ring (see causal_conv.py), is
written by those who read it: the programs of the span's first chunk.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.gdn_math import bounded, silu
from hotstart.kernels.gdn_workspace import warmup
from hotstart.kernels.launch import Launcher, kernel

__all__ = ["keep_inputs", "launch_conv"]


@triton.jit
def keep_inputs(
    packed_ptr, conv_ptr, first_token, length, context, read_slot, write_slot, o_d, m_d,
    ROW: tl.constexpr, CHANNELS: tl.constexpr, W: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """What the next step's convolution needs of the channels o_d.

    A short span keeps some of what its slot held before: row by row, so that both slots may be one.
    """
    o_w = tl.arange(0, BLOCK_W)
    token = length - W + o_w
    m_x = (o_w < W)[:, None] & m_d[None, :]
    is_new = (token >= 0)[:, None]
    b_x = tl.load(packed_ptr + (first_token + token)[:, None] * ROW + o_d[None, :], m_x & is_new, 0.0)
    o_x = ((context + o_w) % W)[:, None] * CHANNELS + o_d[None, :]  # W behind is the same row
    b_x += tl.load(conv_ptr + read_slot * (W * CHANNELS) + o_x, m_x & (token < 0)[:, None] & (read_slot >= 0), 0.0)
    tl.store(conv_ptr + write_slot * (W * CHANNELS) + o_x, b_x, m_x)


@triton.jit
def _inputs(p_x, o_r, n, is_first, ROW: tl.constexpr, RUN: tl.constexpr, W: tl.constexpr):
    """Those of a run's tokens, and W - 1 before them, unless they are before the span."""
    xs = ()
    for j in tl.static_range(RUN + W - 1):
        o_t = o_r + (j - W + 1)
        m_t = (o_t < n) & ((o_t >= 0) | (not is_first))
        xs += (tl.load(p_x + (j - W + 1) * ROW, m_t[:, None], 0.0),)
    return xs


@triton.jit
def _with_slot(xs, conv_ptr, slot, start, o_r, o_d, CHANNELS: tl.constexpr, W: tl.constexpr):
    """The same, with what the slot holds of the tokens before `start`, the span's first position in its sequence."""
    olds = ()
    for j in tl.static_range(W - 1):
        o_t = o_r + (j - W + 1)
        o_old = (start + o_t + W) % W * CHANNELS
        m_t = (o_t < 0) & (slot >= 0)
        b_old = tl.load(conv_ptr + slot * (W * CHANNELS) + (o_old[:, None] + o_d[None, :]), m_t[:, None], 0.0)
        olds += (xs[j] + b_old,)
    return olds + xs[W - 1 :]


@kernel
def _gdn_conv_kernel(
    packed_ptr,  # [T, ROW]
    conv_ptr,  # [slots, W, CHANNELS]
    weight_ptr,  # [CHANNELS, W]
    qk_ptr,  # [T, qk_row UNIT]: q of all heads from q_at UNIT on, k from k_at UNIT on; may be packed
    v_ptr,  # [T, HV * V]
    chunks_ptr,  # [*, 4]
    read_slots_ptr,  # [N]
    write_slots_ptr,  # [N]
    context_lens_ptr,  # [N]
    cu_seqlens_ptr,  # [N + 1]
    first_block: tl.int32,
    num_blocks: tl.int32,
    is_later: tl.int32,
    qk_row: tl.int32,
    q_at: tl.int32,
    k_at: tl.int32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    ROW: tl.constexpr,
    C: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_W: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: chunk x BLOCK_D channels, all of q, all of k or all of v.

    A thread has RUN tokens in a row, so that few inputs are read twice, and asks for all of them before it waits.  The
    kernel before a later launch is an earlier one: it writes none of the inputs, and may still read what is written.
    """
    CHANNELS: tl.constexpr = 2 * H * K + HV * V
    d = (first_block + tl.program_id(0) % num_blocks) * BLOCK_D
    o_d, o_w = d + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_W)
    b_w = tl.load(weight_ptr + (o_d[None, :] * W + o_w[:, None]), (o_w < W)[:, None], 0.0).to(tl.float32)
    if OVERLAP:
        if is_later == 0:
            gdc_wait()
        gdc_launch_dependents()
    i_c = tl.program_id(0).to(tl.int64) // num_blocks
    p_chunk = chunks_ptr + i_c * 4
    token = tl.load(p_chunk + 1).to(tl.int64)
    n = tl.load(p_chunk + 2)
    is_first = tl.load(p_chunk + 3) == 0
    o_r = tl.arange(0, C // RUN) * RUN

    p_x = packed_ptr + token * ROW + (o_r[:, None] * ROW + o_d[None, :])
    xs = _inputs(p_x, o_r, n, is_first, ROW, RUN, W)
    if is_first:
        i_n = tl.load(p_chunk)
        slot = tl.load(read_slots_ptr + i_n).to(tl.int64)
        length = tl.load(cu_seqlens_ptr + i_n + 1) - tl.load(cu_seqlens_ptr + i_n)
        context = tl.load(context_lens_ptr + i_n)
        xs = _with_slot(xs, conv_ptr, slot, context - length, o_r, o_d, CHANNELS, W)
        write_slot = tl.load(write_slots_ptr + i_n).to(tl.int64)
        if write_slot >= 0:
            tl.debug_barrier()  # all have read the slot
            m_d = o_d < CHANNELS
            keep_inputs(
                packed_ptr, conv_ptr, token, length, context, slot, write_slot, o_d, m_d, ROW, CHANNELS, W, BLOCK_W
            )
    ws = ()
    for j in tl.static_range(W):
        ws += (tl.sum(tl.where(o_w[:, None] == j, b_w, 0.0), 0)[None, :],)

    stride = tl.where(d < 2 * H * K, qk_row * UNIT, HV * V)
    p_u = v_ptr + (token * (HV * V) + d - 2 * H * K)
    if d < 2 * H * K:
        p_u = qk_ptr + (token * stride + d + tl.where(d < H * K, q_at * UNIT, k_at * UNIT - H * K))
    p_u += o_r[:, None] * stride + tl.arange(0, BLOCK_D)[None, :]
    if OVERLAP:
        gdc_wait()
    for i in tl.static_range(RUN):
        u = tl.zeros([C // RUN, BLOCK_D], tl.float32)
        for j in tl.static_range(W):
            u += xs[i + j].to(tl.float32) * ws[j]
        tl.store(p_u + i * stride, bounded(silu(u)).to(v_ptr.dtype.element_ty), (o_r + i < n)[:, None])


launch_conv = Launcher(_gdn_conv_kernel, warmup=warmup)
