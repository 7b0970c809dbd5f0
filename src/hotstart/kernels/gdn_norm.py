"""Prefill of the Gated DeltaNet mixer, last kernel: the gated norm, y = norm_weight (o / rms(o)) silu(z), in place."""

import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.gdn_math import silu
from hotstart.kernels.gdn_workspace import warmup
from hotstart.kernels.launch import Launcher, kernel

__all__ = ["NORM_ROWS", "launch_norm"]

NORM_ROWS = 16  # of a program


@kernel
def _gdn_norm_kernel(
    packed_ptr,  # [T, ROW]
    weight_ptr,  # [V]
    o_ptr,  # [T, HV, V]
    chunks_ptr,  # [*, 4]
    eps: tl.float32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    ROW: tl.constexpr,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: chunk x BLOCK_T rows x value head."""
    CHANNELS: tl.constexpr = 2 * H * K + HV * V
    i_hv = tl.program_id(0) % HV
    i_t = tl.program_id(0) // HV
    p_chunk = chunks_ptr + (i_t // (C // BLOCK_T)).to(tl.int64) * 4
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
    b_o = tl.load(p_o, m_o, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(b_o * b_o, 1) * (1.0 / V) + eps)
    b_y = b_o * scale[:, None] * b_w[None, :] * silu(b_z)
    tl.store(p_o, b_y.to(o_ptr.dtype.element_ty), m_o)


launch_norm = Launcher(_gdn_norm_kernel, warmup=warmup, in_place=True)
