"""Before attention: RMS norm of queries and keys, partial rotary embedding, and the write of keys and values.

    q' = rotate(q / rms(q) * (1 + w_q), position);  k' likewise;  page <- k', v

Queries are returned, keys and values go where `step.kv_index` says.  The gates stay in the packed projection, where
attention reads them.  Everything is float32 until the one rounding that ends it.
"""

from functools import cache, lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel
from hotstart.kernels.norm import in_dtype, norm_scale, row_length
from hotstart.kernels.ops import AttentionDims
from hotstart.kernels.rotary import apply_rotary
from hotstart.kernels.step import Step

__all__ = ["attention_prepare", "attention_prepare_torch"]

_TILE, _WARPS = 1024, 1  # values of one program: small ones, which wait for their loads apart, are fastest


def attention_prepare_torch(
    packed: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Step,
    dims: AttentionDims,
) -> Tensor:
    """See `attention_prepare`."""
    T, n = packed.shape[0], step.num_tokens
    H, Hkv, D = dims.num_heads, dims.num_kv_heads, dims.head_dim
    positions, kv_index = step.positions, step.kv_index
    if n < T:
        packed, positions, kv_index = packed[:n], positions[:n], kv_index[:n]
    heads, k, v, _ = packed.split_with_sizes((2 * H * D, Hkv * D, Hkv * D, packed.shape[1] - dims.packed_width), dim=1)
    qk = torch.cat([heads.view(n, H, 2 * D)[:, :, :D], k.view(n, Hkv, D)], dim=1).float()  # [n, H + Hkv, D]
    qk = (qk / row_length(qk, dims.eps * D)).mul_(_scales(q_norm, k_norm, H, Hkv))
    apply_rotary(qk, rope.index_select(0, positions))
    q, k = qk.split_with_sizes((H, Hkv), dim=1)
    keys.view(-1, Hkv, D).index_copy_(0, kv_index, in_dtype(k, keys.dtype))
    values.view(-1, Hkv, D).index_copy_(0, kv_index, in_dtype(v.view(n, Hkv, D), values.dtype))
    queries = in_dtype(q, packed.dtype)
    return queries if n == T else torch.cat([queries, queries.new_zeros(T - n, H, D)])


@lru_cache(maxsize=128)
def _scales(q_norm: Tensor, k_norm: Tensor, H: int, Hkv: int) -> Tensor:
    """Of each query head, then of each key head, [H + Hkv, D]."""
    return torch.cat([norm_scale(q_norm).expand(H, -1), norm_scale(k_norm).expand(Hkv, -1)])


@kernel
def _attention_prepare_kernel(
    packed_ptr,  # [T, ROW]
    q_norm_ptr,  # [D]
    k_norm_ptr,  # [D]
    rope_ptr,  # [positions, R]: cos | sin
    positions_ptr,  # [T]
    kv_index_ptr,  # [T]
    queries_ptr,  # [T, H, D]
    keys_ptr,  # [pages * page_size, HKV, D]
    values_ptr,  # likewise
    eps: tl.float32,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: token x block of heads, which are counted through queries, keys and values."""
    if OVERLAP:
        gdc_launch_dependents()
    HALF: tl.constexpr = R // 2
    num_heads: tl.constexpr = H + 2 * HKV
    num_blocks: tl.constexpr = (num_heads + BLOCK_H - 1) // BLOCK_H
    i_p = tl.program_id(0)
    i_t = (i_p // num_blocks).to(tl.int64)
    i_kv = tl.load(kv_index_ptr + i_t)
    o_h = i_p % num_blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    o_d = tl.arange(0, BLOCK_D)
    m_d, m_r = o_d < D, o_d < R
    # A row of padding reads nothing, so that its queries are zero, and writes no page.
    m_h = o_h < tl.where(i_kv < 0, 0, num_heads)
    m_q = o_h < H
    p_x = packed_ptr + i_t * ROW + tl.where(m_q, o_h * 2 * D, (H + o_h) * D)[:, None]
    o_pair = tl.where(o_d < HALF, o_d + HALF, o_d - HALF)
    b_w = _either(m_q, q_norm_ptr, k_norm_ptr, o_d, m_d)
    b_w_pair = _either(m_q, q_norm_ptr, k_norm_ptr, o_pair, m_r)
    p_angle = rope_ptr + tl.load(positions_ptr + i_t).to(tl.int64) * R + tl.where(o_d < HALF, o_d, o_d - HALF)
    b_cos = tl.load(p_angle, mask=m_r, other=1)
    b_sin = tl.load(p_angle + HALF, mask=m_r, other=0)
    b_sin = tl.where(o_d < HALF, -b_sin, b_sin)
    if OVERLAP:  # what is known since the step began has been asked for
        gdc_wait()
    b_x = tl.load(p_x + o_d[None, :], mask=m_h[:, None] & m_d[None, :], other=0)
    b_wide = b_x.to(tl.float32)
    b_scale = tl.rsqrt(tl.sum(b_wide * b_wide, axis=1) / D + eps)[:, None]

    # The other half of a rotated pair comes from memory again: it is in the cache, and registers cannot be permuted.
    b_pair = tl.load(p_x + o_pair[None, :], mask=m_h[:, None] & m_r[None, :], other=0).to(tl.float32)
    b_y = b_scale * (b_wide * (1 + b_w) * b_cos[None, :] + b_pair * (1 + b_w_pair) * b_sin[None, :])

    p_q = queries_ptr + (i_t * H + o_h)[:, None] * D + o_d[None, :]
    tl.store(p_q, b_y.to(queries_ptr.dtype.element_ty), mask=m_q[:, None] & m_d[None, :])
    m_kv = m_h & (o_h >= H)
    p_k = keys_ptr + (i_kv * HKV + o_h - H)[:, None] * D + o_d[None, :]
    tl.store(p_k, b_y.to(keys_ptr.dtype.element_ty), mask=(m_kv & (o_h < H + HKV))[:, None] & m_d[None, :])
    p_v = values_ptr + (i_kv * HKV + o_h - H - HKV)[:, None] * D + o_d[None, :]
    tl.store(p_v, b_x.to(values_ptr.dtype.element_ty), mask=(m_kv & (o_h >= H + HKV))[:, None] & m_d[None, :])


@triton.jit
def _either(first, one_ptr, other_ptr, offsets, mask):
    """Rows of a tile from the one vector, the other rows from the other."""
    one = tl.load(one_ptr + offsets, mask=mask, other=0).to(tl.float32)
    other = tl.load(other_ptr + offsets, mask=mask, other=0).to(tl.float32)
    return tl.where(first[:, None], one[None, :], other[None, :])


def attention_prepare(
    packed: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Step,
    dims: AttentionDims,
) -> Tensor:
    """Queries [T, H, D] of a packed projection (q, gate) by head | k | v; fills the pages.  Rows of padding are zero.

    packed: [T, *]; q_norm, k_norm: [D], zero-centred; rope: cos | sin [positions, rotary_dim] float32; keys, values:
    [pages, page_size, Hkv, D].
    """
    T, H, Hkv, D = packed.shape[0], dims.num_heads, dims.num_kv_heads, dims.head_dim
    assert rope.shape[1] == dims.rotary_dim and keys.shape[2:] == (Hkv, D), (rope.shape, keys.shape)
    queries = packed.new_empty(T, H, D)
    launch, num_blocks = _bound(dims, packed.shape[1])
    launch(
        (T * num_blocks,), packed, q_norm, k_norm, rope, step.positions, step.kv_index, queries, keys, values, dims.eps
    )
    return queries


@cache
def _bound(dims: AttentionDims, row: int) -> tuple[BoundLaunch, int]:
    """And the programs of a token."""
    num_heads = dims.num_heads + 2 * dims.num_kv_heads
    block_d = triton.next_power_of_2(dims.head_dim)
    block_h = min(triton.next_power_of_2(num_heads), max(1, _TILE // block_d))
    launch = _launch.bind(
        H=dims.num_heads,
        HKV=dims.num_kv_heads,
        D=dims.head_dim,
        R=dims.rotary_dim,
        ROW=row,
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        num_warps=_WARPS,
    )
    return launch, -(-num_heads // block_h)


def _warmup(space: LaunchSpace) -> None:
    dims = space.attention
    if dims is None:
        return
    for dtype in space.activation_dtypes:
        packed, norm, rope, keys, values = space.attention_inputs(dims, dtype)
        attention_prepare(packed, norm, norm, rope, keys, values, space.step(space.device), dims)


_launch = Launcher(_attention_prepare_kernel, warmup=_warmup)
