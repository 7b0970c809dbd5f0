"""Prefill of the Gated DeltaNet mixer, last kernel: the gated norm, and what the next step's convolution needs.

y = norm_weight (o / rms(o)) silu(z), in place;  conv slot = the last W inputs of a sequence (see causal_conv.py)
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.gdn_conv import silu
from hotstart.kernels.gdn_workspace import warmup
from hotstart.kernels.launch import Launcher, kernel

__all__ = ["launch_norm"]


@triton.jit
def _keep_inputs(
    packed_ptr, conv_ptr, first_token, length, context, read_slot, write_slot, o_d,
    ROW: tl.constexpr, CHANNELS: tl.constexpr, W: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """A short span keeps some of what its slot held before: row by row, so that both slots may be one."""
    o_w = tl.arange(0, BLOCK_W)
    token = length - W + o_w
    m_x = (o_w < W)[:, None] & (o_d < CHANNELS)[None, :]
    is_new = (token >= 0)[:, None]
    b_x = tl.load(packed_ptr + (first_token + token)[:, None] * ROW + o_d[None, :], m_x & is_new, 0.0)
    o_x = ((context + o_w) % W)[:, None] * CHANNELS + o_d[None, :]  # W behind is the same row
    b_x += tl.load(conv_ptr + read_slot * (W * CHANNELS) + o_x, m_x & (token < 0)[:, None] & (read_slot >= 0), 0.0)
    tl.store(conv_ptr + write_slot * (W * CHANNELS) + o_x, b_x, m_x)


@kernel
def _gdn_norm_kernel(
    packed_ptr,  # [T, ROW]
    weight_ptr,  # [V]
    o_ptr,  # [T, HV, V]
    conv_ptr,  # [slots, W, CHANNELS]
    read_slots_ptr,  # [N]
    write_slots_ptr,  # [N]
    context_lens_ptr,  # [N]
    cu_seqlens_ptr,  # [N + 1]
    cu_chunks_ptr,  # [N + 1]
    chunks_ptr,  # [*, 4]
    first_sequence: tl.int32,
    slab_begin: tl.int32,
    slab_end: tl.int32,
    eps: tl.float32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    ROW: tl.constexpr,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    O_TYPE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Programs: chunk x BLOCK_T rows x value head, then sequence x BLOCK_D channels of the convolution."""
    CHANNELS: tl.constexpr = 2 * H * K + HV * V
    NUM_BLOCKS: tl.constexpr = (CHANNELS + BLOCK_D - 1) // BLOCK_D
    num_norms = (slab_end - slab_begin) * (C // BLOCK_T * HV)
    i_p = tl.program_id(0)
    if i_p < num_norms:
        i_hv = i_p % HV
        i_t = i_p // HV
        p_chunk = chunks_ptr + (slab_begin + i_t // (C // BLOCK_T)).to(tl.int64) * 4
        token = tl.load(p_chunk + 1).to(tl.int64) + i_t % (C // BLOCK_T) * BLOCK_T
        left = tl.load(p_chunk + 2) - i_t % (C // BLOCK_T) * BLOCK_T
        o_t, o_v = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_V)
        m_v = o_v < V
        m_o = (o_t < left)[:, None] & m_v[None, :]
        p_o = o_ptr + (token * HV + i_hv) * V + (o_t[:, None] * (HV * V) + o_v[None, :])
        p_z = packed_ptr + token * ROW + CHANNELS + i_hv * V + (o_t[:, None] * ROW + o_v[None, :])
        b_z = tl.load(p_z, m_o, 0.0).to(tl.float32)
        b_w = tl.load(weight_ptr + o_v, m_v, 0.0)
        if OVERLAP:
            gdc_wait()
            gdc_launch_dependents()
        b_o = tl.load(p_o, m_o, 0.0).to(O_TYPE, bitcast=o_ptr.dtype.element_ty != O_TYPE).to(tl.float32)
        scale = tl.rsqrt(tl.sum(b_o * b_o, 1) * (1.0 / V) + eps)
        b_y = b_o * scale[:, None] * b_w[None, :] * silu(b_z)
        tl.store(p_o, b_y.to(o_ptr.dtype.element_ty), m_o)
    else:
        if OVERLAP:
            gdc_wait()
            gdc_launch_dependents()
        i_p -= num_norms
        i_n = first_sequence + i_p // NUM_BLOCKS
        begin = tl.load(cu_chunks_ptr + i_n)
        end = tl.load(cu_chunks_ptr + i_n + 1)
        write_slot = tl.load(write_slots_ptr + i_n).to(tl.int64)
        # Where the sequence ends in this slab.
        if (begin < end) & (end <= slab_end) & (write_slot >= 0):
            read_slot = tl.load(read_slots_ptr + i_n).to(tl.int64)
            first_token = tl.load(cu_seqlens_ptr + i_n).to(tl.int64)
            length = tl.load(cu_seqlens_ptr + i_n + 1) - first_token
            context = tl.load(context_lens_ptr + i_n)
            o_d = i_p % NUM_BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
            _keep_inputs(
                packed_ptr, conv_ptr, first_token, length, context, read_slot, write_slot, o_d,
                ROW, CHANNELS, W, BLOCK_W,
            )  # fmt: skip


launch_norm = Launcher(_gdn_norm_kernel, warmup=warmup, in_place=True)
