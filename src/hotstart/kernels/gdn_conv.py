"""Prefill of the Gated DeltaNet mixer, first kernel: u = silu(causal_conv(q | k | v)) of a slab's chunks.

q and k go to the workspace, by chunk; v goes to the output's memory, which the scan reads before it writes there.  The
first W - 1 outputs of a span need the inputs before it: those of its conv slot, or zeros.  The slot itself, a ring (see
causal_conv.py), is written by the last kernel (gdn_norm.py), when nobody reads it any more.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.gdn_workspace import warmup
from hotstart.kernels.launch import Launcher, kernel

__all__ = ["launch_conv", "silu"]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def silu(x):
    # exp2 and rsqrt are one instruction each on the GPU; a division is six.
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return x * (root * root)


@kernel
def _gdn_conv_kernel(
    packed_ptr,  # [T, ROW]
    conv_ptr,  # [slots, W, CHANNELS]
    weight_ptr,  # [CHANNELS, W]
    q_ptr,  # [chunks, C, H * K]
    k_ptr,  # [chunks, C, H * K]
    v_ptr,  # [T, HV * V]
    chunks_ptr,  # [*, 4]
    read_slots_ptr,  # [N]
    context_lens_ptr,  # [N]
    cu_seqlens_ptr,  # [N + 1]
    first_chunk: tl.int32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    ROW: tl.constexpr,
    C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_W: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: chunk x BLOCK_D channels, all of q, all of k or all of v.

    A thread has RUN tokens in a row, so that few inputs are read twice, and asks for all of them before it waits.
    """
    CHANNELS: tl.constexpr = 2 * H * K + HV * V
    NUM_BLOCKS: tl.constexpr = CHANNELS // BLOCK_D
    d = tl.program_id(0) % NUM_BLOCKS * BLOCK_D
    o_d, o_w = d + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_W)
    b_w = tl.load(weight_ptr + (o_d[None, :] * W + o_w[:, None]), (o_w < W)[:, None], 0.0).to(tl.float32)
    if OVERLAP:
        # The slab before shares nothing with this one, but for the slots of sequences that ended in it.
        if first_chunk == 0:
            gdc_wait()
        gdc_launch_dependents()
    i_c = tl.program_id(0).to(tl.int64) // NUM_BLOCKS
    p_chunk = chunks_ptr + (first_chunk + i_c) * 4
    token = tl.load(p_chunk + 1).to(tl.int64)
    n = tl.load(p_chunk + 2)
    is_first = tl.load(p_chunk + 3) == 0
    o_r = tl.arange(0, C // RUN) * RUN

    # The inputs of a run: those of its tokens, and W - 1 before them.
    p_x = packed_ptr + token * ROW + (o_r[:, None] * ROW + o_d[None, :])
    xs = ()
    for j in tl.static_range(RUN + W - 1):
        o_t = o_r + (j - W + 1)
        m_t = (o_t < n) & ((o_t >= 0) | (not is_first))
        xs = xs + (tl.load(p_x + (j - W + 1) * ROW, m_t[:, None], 0.0),)  # type: ignore[assignment]  # noqa: RUF005 - a tuple of Triton's
    if is_first:
        i_n = tl.load(p_chunk)
        slot = tl.load(read_slots_ptr + i_n).to(tl.int64)
        length = tl.load(cu_seqlens_ptr + i_n + 1) - tl.load(cu_seqlens_ptr + i_n)
        start = tl.load(context_lens_ptr + i_n) - length  # the span's first position in its sequence
        olds = ()
        for j in tl.static_range(W - 1):
            o_t = o_r + (j - W + 1)
            o_old = (start + o_t + W) % W * CHANNELS
            m_t = (o_t < 0) & (slot >= 0)
            b_old = tl.load(conv_ptr + slot * (W * CHANNELS) + (o_old[:, None] + o_d[None, :]), m_t[:, None], 0.0)
            olds = olds + (xs[j] + b_old,)  # type: ignore[assignment]  # noqa: RUF005 - likewise
        xs = olds + xs[W - 1 :]  # type: ignore[assignment]  # a tuple of Triton's
    ws = ()
    for j in tl.static_range(W):
        ws = ws + (tl.sum(tl.where(o_w[:, None] == j, b_w, 0.0), 0)[None, :],)  # type: ignore[assignment]  # noqa: RUF005 - likewise

    p_u = v_ptr + (token * (HV * V) + d - 2 * H * K)
    if d < H * K:
        p_u = q_ptr + (i_c * (C * H * K) + d)
    elif d < 2 * H * K:
        p_u = k_ptr + (i_c * (C * H * K) + d - H * K)
    stride = tl.where(d < 2 * H * K, H * K, HV * V)
    p_u += o_r[:, None] * stride + tl.arange(0, BLOCK_D)[None, :]
    for i in tl.static_range(RUN):
        u = tl.zeros([C // RUN, BLOCK_D], tl.float32)
        for j in tl.static_range(W):
            u += xs[i + j].to(tl.float32) * ws[j]
        tl.store(p_u + i * stride, silu(u).to(v_ptr.dtype.element_ty), (o_r + i < n)[:, None])
    if OVERLAP:
        gdc_wait()  # who waits for this kernel waits for all before it


launch_conv = Launcher(_gdn_conv_kernel, warmup=warmup)
