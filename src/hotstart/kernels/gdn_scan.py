"""The chunked Gated DeltaNet rule, second half: walk the chunks of each sequence.

With the chunk matrices of `gdn_prep.py`, and the state of one value head kept in registers as [V, K]:

    R = V - exp(G) (K S);  O = exp(G) (Q S) + X R;  S = exp(G_C) S + Z^T R

Everything is computed transposed (R^T, O^T are [V, C]): then each left operand is the previous product's accumulator,
straight from registers, each right operand a tile with its inner dimension contiguous, and no accumulator is ever
transposed into a product, which Triton compiles wrongly for Hopper before 3.7.1.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.gdn_math import to_operand
from hotstart.kernels.gdn_workspace import warmup, x_and_factors, z_of_head
from hotstart.kernels.launch import Launcher, kernel

__all__ = ["launch_scan"]


@triton.jit
def _advance(s, q, k, v, z, x, q_factor, k_factor, decay, m_c, left, C: tl.constexpr, TMA: tl.constexpr):
    """One chunk: its state and outputs, [V, K] and [V, C].  TMA: rows behind its last token are a neighbour's."""
    operand = to_operand(s, x.dtype)
    r = tl.trans(v).to(tl.float32) - tl.dot(operand, tl.trans(k), input_precision="tf32x3") * k_factor[None, :]
    if TMA:  # noqa: SIM102 - this one is settled at compile time
        if left < C:
            r = tl.where(m_c[None, :], r, 0.0)
    r = to_operand(r, x.dtype)
    o = tl.dot(operand, tl.trans(q), input_precision="tf32x3") * q_factor[None, :]
    s = tl.dot(r, z, s * decay, input_precision="tf32x3")
    return s, tl.dot(r, tl.trans(x), o, input_precision="tf32x3")


@kernel
def _gdn_scan_kernel(
    q_ptr,  # [T, qk_row UNIT]: q of all heads from q_at UNIT on
    k_ptr,  # likewise, k from k_at UNIT on
    v_ptr,  # [T, HV * V]
    o_ptr,  # [T, HV * V], may be v
    z_ptr,  # [z_rows, z_row UNIT]: Z, see gdn_workspace.py; may be that of q and k
    x_ptr,  # X of each buffer
    floats_ptr,  # two carried states [HV, V, K], and factors of each buffer
    state_ptr,  # [slots, HV, V, K]
    read_slots_ptr,  # [N]
    write_slots_ptr,  # [N]
    cu_seqlens_ptr,  # [N + 1]
    cu_chunks_ptr,  # [N + 1]
    first_sequence: tl.int32,
    slab_begin: tl.int32,
    slab_end: tl.int32,
    num_tokens: tl.int32,
    qk_row: tl.int32,
    q_at: tl.int32,
    k_at: tl.int32,
    z_row: tl.int32,
    z_at: tl.int32,
    z_rows: tl.int32,
    z_apart: tl.int32,
    first_place: tl.int32,
    turn: tl.int32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TMA: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: sequence x value head x tile of V.  TMA: tiles come by the copy engine, which masks nothing."""
    NV: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    i_v = tl.program_id(0) % NV
    i_hv = tl.program_id(0) // NV % HV
    i_n = first_sequence + tl.program_id(0) // (NV * HV)
    sequence_begin = tl.load(cu_chunks_ptr + i_n)
    sequence_end = tl.load(cu_chunks_ptr + i_n + 1)
    begin = tl.maximum(sequence_begin, slab_begin)
    end = tl.minimum(sequence_end, slab_end)
    if begin >= end:
        if OVERLAP:
            gdc_wait()
        return
    dot = x_ptr.dtype.element_ty
    o_c = tl.arange(0, C)
    o_k = tl.arange(0, BLOCK_K)
    o_v = i_v * BLOCK_V + tl.arange(0, BLOCK_V)
    m_k, m_v = o_k < K, o_v < V
    o_s = o_v[:, None] * K + o_k[None, :]
    m_s = m_v[:, None] & m_k[None, :]
    # No kernel since the scan before writes a state.
    is_first = sequence_begin >= slab_begin
    slot = tl.load(read_slots_ptr + i_n).to(tl.int64)
    s = tl.load(state_ptr + (slot * HV + i_hv) * (V * K) + o_s, m_s & is_first & (slot >= 0), 0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if not is_first:
        s = tl.load(floats_ptr + (turn * HV + i_hv) * (V * K) + o_s, m_s, 0.0)
    # Offsets inside a chunk are the same for all chunks: only scalars move in the loop.
    row = qk_row * UNIT
    o_qk = o_c[:, None] * row + o_k[None, :]
    o_vo = o_c[:, None] * (HV * V) + o_v[None, :]
    o_z = o_c[:, None] * (z_row * UNIT) + o_k[None, :]
    o_x = o_c[:, None] * C + o_c[None, :]
    token = tl.load(cu_seqlens_ptr + i_n).to(tl.int64) + (begin - sequence_begin) * C
    left = (tl.load(cu_seqlens_ptr + i_n + 1) - token).to(tl.int32)
    first = (begin - slab_begin).to(tl.int64)
    q_column = q_at * UNIT + i_hv // (HV // H) * K
    k_column = k_at * UNIT + i_hv // (HV // H) * K
    p_q = q_ptr + token * row + q_column
    p_k = k_ptr + token * row + k_column
    p_v = v_ptr + (token * HV + i_hv) * V
    p_o = o_ptr + (token * HV + i_hv) * V
    block = (first_place + first) * HV + i_hv
    p_x, p_factor = x_and_factors(x_ptr, floats_ptr, block, HV, K, V, C)
    z_first, z_column = z_of_head(z_apart, z_at * UNIT, block, token, i_hv, K, C)
    z_step = tl.where(z_apart != 0, HV * C, C)
    p_z = z_ptr + z_first * (z_row * UNIT) + z_column
    if TMA:
        q_tiles = tl.make_tensor_descriptor(q_ptr, [num_tokens, row], [row, 1], [C, BLOCK_K])
        k_tiles = tl.make_tensor_descriptor(k_ptr, [num_tokens, row], [row, 1], [C, BLOCK_K])
        v_tiles = tl.make_tensor_descriptor(v_ptr, [num_tokens, HV * V], [HV * V, 1], [C, BLOCK_V])
        z_tiles = tl.make_tensor_descriptor(z_ptr, [z_rows, z_row * UNIT], [z_row * UNIT, 1], [C, BLOCK_K])
        x_rows = (first_place + slab_end - slab_begin) * (HV * C)
        x_tiles = tl.make_tensor_descriptor(x_ptr, [x_rows, C], [C, 1], [C, C])
        i_token, i_z, i_block = token.to(tl.int32), z_first.to(tl.int32), block.to(tl.int32)
    # Said here, since a launch's own num_stages leaves out what feeds no product.
    for _ in tl.range(begin, end, num_stages=STAGES):
        m_c = o_c < left
        m_vo = m_c[:, None] & m_v[None, :]
        if TMA:
            k = k_tiles.load([i_token, k_column])
            q = q_tiles.load([i_token, q_column])
            v = v_tiles.load([i_token, i_hv * V + i_v * BLOCK_V])
            z = z_tiles.load([i_z, z_column])
            x = x_tiles.load([i_block * C, 0])
            i_token += C
            i_z += z_step
            i_block += HV
        else:
            m_qk = m_c[:, None] & m_k[None, :]
            k = tl.load(p_k + o_qk, m_qk, 0.0).to(dot)
            q = tl.load(p_q + o_qk, m_qk, 0.0).to(dot)
            v = tl.load(p_v + o_vo, m_vo, 0.0)
            z = tl.load(p_z + o_z, m_qk, 0.0)
            x = tl.load(p_x + o_x)
            p_q += C * row
            p_k += C * row
            p_v += C * HV * V
            p_z += z_step * (z_row * UNIT)
            p_x += HV * C * C
        k_factor = tl.load(p_factor + o_c)
        q_factor = tl.load(p_factor + C + o_c)
        decay = tl.load(p_factor + 2 * C)
        s, o = _advance(s, q, k, v, z, x, q_factor, k_factor, decay, m_c, left, C, TMA)
        tl.store(p_o + o_vo, to_operand(tl.trans(o), o_ptr.dtype.element_ty), m_vo)
        p_o += C * HV * V
        p_factor += HV * (2 * C + 4)
        left -= C

    if sequence_end <= slab_end:
        slot = tl.load(write_slots_ptr + i_n).to(tl.int64)
        p_s = state_ptr + (slot * HV + i_hv) * (V * K)
        tl.store(p_s + o_s, s.to(state_ptr.dtype.element_ty), m_s & (slot >= 0))
    else:
        tl.store(floats_ptr + ((1 - turn) * HV + i_hv) * (V * K) + o_s, s, m_s)


launch_scan = Launcher(_gdn_scan_kernel, warmup=warmup)
