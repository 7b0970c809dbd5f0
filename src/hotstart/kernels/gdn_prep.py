"""The chunked Gated DeltaNet rule, first half: everything about a chunk that needs no state.

For a chunk of C tokens and one value head, with G the running sum of g inside the chunk, k and q of unit norm (q times
K^-0.5) and A = strictly_lower(beta_i k_i.k_j), let T = (I + A)^-1.  Gating is a diagonal similarity, so the solve needs
no gate, and every gate is applied in float32 to a finished product:

    Z_j  = exp(G_C - G_j) beta_j (T^T k)_j              [C, K]   what a token's residual adds to the state
    X_ij = exp(G_i - G_j) beta_j (lower(q k^T) T)_ij    [C, C]   and to the chunk's outputs

`gdn_scan.py` then walks the chunks of a sequence with two dependent products for each.  q and k are never stored
normed: their norms, from the diagonals of k k^T and q q^T, are float32 factors of finished products.

T is joined from diagonal blocks of 1, 2, 4 ... tokens, T <- T - T (A in the new corner) T: every factor is a product of
contractions, all entries stay within 1, and half precision (11 bits) suffices, where a Neumann series of the whole
chunk loses everything once keys are correlated.  Blocks up to 16 are joined as a batch of small products.

Source: Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464; the residual form with Z and X is ours.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.gdn_math import L2_EPS, LOG2E, log_decay
from hotstart.kernels.gdn_workspace import warmup, x_and_factors, z_of_head
from hotstart.kernels.launch import Launcher, kernel

__all__ = ["launch_prep"]


@triton.jit
def _join(t, a, i, j, b: tl.constexpr):
    """From the inverses of diagonal blocks of b tokens, all that t has, to those of 2 b.  All of a may come along."""
    half = a.dtype
    step = tl.dot(t.to(half), a, input_precision="tf32x3")
    step = tl.dot(step.to(half), t.to(half), input_precision="tf32x3")
    corner = (i // (2 * b) == j // (2 * b)) & (i // b > j // b)
    return t - tl.where(corner, step, 0.0)


@triton.jit
def _solve(a, C: tl.constexpr):
    """(I + strictly_lower(a))^-1: of a, [C, C], nothing else is looked at."""
    B: tl.constexpr = C // 16
    o_c = tl.arange(0, C)
    # The diagonal blocks of 16, out of the square and back into it.
    on_diagonal = tl.arange(0, B)[:, None, None, None] == tl.arange(0, B)[None, None, :, None]
    i3, j3 = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    a3 = tl.sum(tl.where(on_diagonal, tl.reshape(a, [B, 16, B, 16]), 0.0), 2)
    t3 = tl.where(i3 == j3, 1.0, 0.0) - tl.where((i3 // 2 == j3 // 2) & (i3 > j3), a3, 0.0).to(tl.float32)
    for level in tl.static_range(1, 4):
        t3 = _join(t3, a3, i3, j3, 1 << level)
    t = tl.where(on_diagonal, tl.reshape(t3.to(a.dtype), [B, 16, 1, 16]), 0.0)
    t = tl.reshape(t, [C, C]).to(tl.float32)
    for level in tl.static_range(4, 7):
        if 1 << level < C:
            t = _join(t, a, o_c[:, None], o_c[None, :], 1 << level)
    return t


@triton.jit
def _inverse_lengths(xx, i, j):
    """Of the rows of x, from the diagonal of x x^T."""
    return tl.rsqrt(tl.sum(tl.where(i == j, xx, 0.0), 1) + L2_EPS)


@triton.jit
def _inverse(k, beta, i, j, C: tl.constexpr, HALF: tl.constexpr):
    """T, with the norms of k in its rows and beta in its columns, in two summands; and these norms."""
    kk = tl.dot(k, tl.trans(k), input_precision="tf32x3")
    k_norm = _inverse_lengths(kk, i, j)
    a = kk * (beta * k_norm)[:, None] * k_norm[None, :]
    # beta here, though it could join the gates: what is left would round alike in all columns where keys are the same.
    whole = _solve(a.to(HALF), C) * k_norm[:, None] * beta[None, :]
    t = whole.to(k.dtype)
    return t, (whole - t.to(tl.float32)).to(k.dtype), k_norm


@triton.jit
def _times(x, t, rest):
    """x T.  In bfloat16 both summands, since sums over T nearly cancel where keys are alike, and errors would not."""
    product = tl.dot(x, t, input_precision="tf32x3")
    if x.dtype == tl.bfloat16:
        product = tl.dot(x, rest, product, input_precision="tf32x3")
    return product


@triton.jit
def _to_outputs(q, k, t, rest, total, i, j, K: tl.constexpr):
    """X, and log2 of exp(G) with the norm of q: the factor of Q S."""
    q_norm = tl.log2(_inverse_lengths(tl.dot(q, tl.trans(q), input_precision="tf32x3"), i, j) * K**-0.5)
    qk = tl.where(i >= j, tl.dot(q, tl.trans(k), input_precision="tf32x3"), 0.0)
    if q.dtype == tl.float16:  # which might not hold q k^T before q is normed
        qk *= tl.exp2(q_norm)[:, None]
    qk = qk.to(q.dtype)
    # The norm of q is one more factor of a row, so elsewhere it joins the row's exponent.
    grown = total + q_norm
    rows = total if q.dtype == tl.float16 else grown
    # Masked before exp2: above the diagonal the exponents are positive and overflow.
    gates = tl.exp2(tl.where(i >= j, rows[:, None] - total[None, :], float("-inf")))
    return _times(qk, t, rest) * gates, grown


@kernel
def _gdn_prep_kernel(
    q_ptr,  # [T, qk_row UNIT]: q of all heads from q_at UNIT on
    k_ptr,  # likewise, k from k_at UNIT on
    g_ptr,  # [T, GATE_ROW]: g, or with GATES the raw a
    beta_ptr,  # [T, GATE_ROW]: beta, or with GATES the raw b
    A_log_ptr,  # [HV]
    dt_bias_ptr,  # [HV]
    z_ptr,  # [z_rows, z_row UNIT]: Z, see gdn_workspace.py; may be that of q and k
    x_ptr,  # X of each buffer
    floats_ptr,  # factors of K S, of Q S, and of S
    chunks_ptr,  # [*, 4]
    first_chunk: tl.int32,
    is_beside: tl.int32,
    qk_row: tl.int32,
    q_at: tl.int32,
    k_at: tl.int32,
    z_row: tl.int32,
    z_at: tl.int32,
    z_rows: tl.int32,
    z_apart: tl.int32,
    first_place: tl.int32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATES: tl.constexpr,
    GATE_ROW: tl.constexpr,
    G_OFFSET: tl.constexpr,
    BETA_OFFSET: tl.constexpr,
    HALF: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: chunk x value head.

    Of the first slab, it follows those who write q, k and, without GATES, the gates.  A later one works beside the scan
    of the slab before, and shares nothing with it but the order in which they end.
    """
    if OVERLAP and not GATES:  # noqa: SIM102 - this one is settled at compile time
        if is_beside == 0:
            gdc_wait()
    i_c = tl.program_id(0).to(tl.int64) // HV
    i_hv = tl.program_id(0) % HV
    p_chunk = chunks_ptr + (first_chunk + i_c) * 4
    token = tl.load(p_chunk + 1).to(tl.int64)
    n = tl.load(p_chunk + 2)
    o_c, o_k = tl.arange(0, C), tl.arange(0, BLOCK_K)
    m_c = o_c < n
    i, j = o_c[:, None], o_c[None, :]
    dot = x_ptr.dtype.element_ty

    # Both gates of a token in one tile, since a smaller one would be loaded and computed once more in each layout.
    p_gate = token * GATE_ROW + i_hv + o_c[:, None] * GATE_ROW
    is_g = tl.arange(0, 2)[None, :] == 1
    p_gate = tl.where(is_g, g_ptr + (p_gate + G_OFFSET), beta_ptr + (p_gate + BETA_OFFSET))
    b_gates = tl.load(p_gate, m_c[:, None], 0.0)
    if OVERLAP:
        if is_beside == 0:
            gdc_wait()
        gdc_launch_dependents()
    row = qk_row * UNIT
    o_qk = token * row + i_hv // (HV // H) * K + (o_c[:, None] * row + o_k[None, :])
    m_qk = m_c[:, None] & (o_k < K)[None, :]
    k = tl.load(k_ptr + k_at * UNIT + o_qk, m_qk, 0.0).to(dot)

    beta, g = tl.split(b_gates.to(tl.float32))
    if GATES:
        beta = tl.where(m_c, tl.sigmoid(beta), 0.0)
        g = tl.where(m_c, log_decay(g + tl.load(dt_bias_ptr + i_hv), tl.load(A_log_ptr + i_hv)), 0.0)
    # Less than 2^-126 is nothing in float32; the smaller the sum, the more digits its differences have.
    g = tl.maximum(g * LOG2E, -126.0)
    total, last = tl.cumsum(g, 0), tl.sum(g, 0)

    t, rest, k_norm = _inverse(k, beta, i, j, C, HALF)
    q = tl.load(q_ptr + q_at * UNIT + o_qk, m_qk, 0.0).to(dot)
    x, grown = _to_outputs(q, k, t, rest, total, i, j, K)
    p_x, p_factor = x_and_factors(x_ptr, floats_ptr, (first_place + i_c) * HV + i_hv, HV, K, V, C)
    tl.store(p_x + (i * C + j), x.to(dot))
    z = _times(tl.trans(k), t, rest) * tl.exp2(last - total)[None, :]
    # All rows of a chunk, though the sequence may end within: the scan multiplies what is there by zero.
    z_first, z_column = z_of_head(z_apart, z_at * UNIT, (first_place + i_c) * HV + i_hv, token, i_hv, K, C)
    m_z = (o_k < K)[:, None] & (o_c < (z_rows - z_first).to(tl.int32))[None, :]
    p_z = z_ptr + z_first * (z_row * UNIT) + z_column
    tl.store(p_z + (o_c[None, :] * (z_row * UNIT) + o_k[:, None]), z.to(dot), m_z)
    tl.store(p_factor + o_c, tl.exp2(total) * k_norm)
    tl.store(p_factor + C + o_c, tl.exp2(grown))
    tl.store(p_factor + 2 * C, tl.exp2(last))
    if OVERLAP:  # noqa: SIM102 - likewise
        # Who waits for this kernel waits for the scan before it.  One program is enough, and keeps one place.
        if tl.program_id(0) == tl.num_programs(0) - 1:
            gdc_wait()


launch_prep = Launcher(_gdn_prep_kernel, warmup=warmup)
