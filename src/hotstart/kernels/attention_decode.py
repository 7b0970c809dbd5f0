"""Attention of one new token of each decoding sequence to its pages, gated: y = sigmoid(gate) * softmax(q k^T) v.

A long context is cut into parts that programs attend to at the same time; a second launch joins them by their
log-sum-exp.  How many parts there are follows from the sequence's own context alone, which the kernel reads: no
neighbour and no padding changes a bit of a result, the grid holds for any context, and a graph can replay it.  A
context of one part is finished by the first launch.

Source: Dao et al. 2023, Flash-Decoding.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel
from hotstart.kernels.ops import AttentionDims
from hotstart.kernels.step import Step

__all__ = ["attention_decode"]

MAX_PARTS = 32  # of a context
PART_TOKENS = 128  # the least that a part is worth
WORKSPACE_BYTES = 64 << 20  # of parts at once: more sequences go one slab after the other
_TILE_BYTES = 16384  # of keys; as many of values
_WARPS, _STAGES = 4, 3
_LOG2E = 1.4426950408889634


@triton.jit
def _part_length(context, MAX_PARTS: tl.constexpr, PART_TOKENS: tl.constexpr):
    """Tokens of each part but the last, a multiple of 64."""
    parts = tl.minimum(tl.cdiv(context, PART_TOKENS), MAX_PARTS)
    return tl.cdiv(tl.cdiv(context, tl.maximum(parts, 1)), 64) * 64


@triton.jit
def _attend(
    b_q, keys_ptr, values_ptr, p_table, i_h, o_d, m_d, begin, end, scale,
    HKV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """To keys [begin, end): weighted values, the largest score, and the sum of weights, by query head."""
    o_n = tl.arange(0, BLOCK_N)
    o_head = i_h * D + o_d[None, :]
    b_o = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    b_max = tl.full([BLOCK_G], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_G], tl.float32)
    # A tile ahead, so that keys and values are loads that wait for no other.
    i_page = tl.load(p_table + (begin + o_n) // PAGE, mask=begin + o_n < end, other=0)
    for start in range(begin, end, BLOCK_N):
        o_t = start + o_n
        m_n = o_t < end
        o_kv = (i_page.to(tl.int64) * PAGE + o_t % PAGE)[:, None] * (HKV * D) + o_head
        m_kv = m_n[:, None] & m_d[None, :]
        b_k = tl.load(keys_ptr + o_kv, mask=m_kv, other=0)
        b_v = tl.load(values_ptr + o_kv, mask=m_kv, other=0)
        i_page = tl.load(p_table + (o_t + BLOCK_N) // PAGE, mask=o_t + BLOCK_N < end, other=0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3") * scale
        b_s = tl.where(m_n[None, :], b_s, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_s, axis=1))
        b_p = tl.exp2(b_s - b_new_max[:, None])
        b_shrink = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * b_shrink[:, None], input_precision="tf32x3")
        b_max = b_new_max
    return b_o, b_max, b_sum


@kernel
def _attend_kernel(
    queries_ptr,  # [T, H, D]
    packed_ptr,  # [T, ROW]: for each head its query, then its gate
    keys_ptr,  # [pages, PAGE, HKV, D]
    values_ptr,  # likewise
    page_table_ptr,  # [N, table_width]
    context_lens_ptr,  # [N]
    parts_ptr,  # [rows, HKV, MAX_PARTS, G, D] float32
    sums_ptr,  # [rows, HKV, MAX_PARTS, G] float32: log2 of the sums of exponentials
    y_ptr,  # [T, H, D]
    scale: tl.float32,
    first_row: tl.int32,
    num_sequences: tl.int32,
    table_width: tl.int32,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    ROW: tl.constexpr,
    PAGE: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    PART_TOKENS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: sequence x key head x part; it serves all the query heads that share the key head."""
    if OVERLAP:
        gdc_launch_dependents()
    G: tl.constexpr = H // HKV
    i_p = tl.program_id(0)
    i_part = i_p % MAX_PARTS
    i_h = i_p // MAX_PARTS % HKV
    i_row = i_p // (MAX_PARTS * HKV)
    i_t = (first_row + i_row).to(tl.int64)
    context = tl.load(context_lens_ptr + i_t, mask=i_t < num_sequences, other=0)
    length = _part_length(context, MAX_PARTS, PART_TOKENS)
    begin = i_part * length
    end = tl.minimum(begin + length, context)
    if OVERLAP:
        gdc_wait()
    o_g, o_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    m_g, m_d = o_g < G, o_d < D
    m_q = m_g[:, None] & m_d[None, :]
    o_q = o_g[:, None] * D + o_d[None, :]
    p_y = y_ptr + (i_t * H + i_h * G) * D + o_q
    if begin >= end:
        if i_part == 0:  # a row of padding
            tl.store(p_y, tl.zeros([BLOCK_G, BLOCK_D], tl.float32).to(y_ptr.dtype.element_ty), mask=m_q)
        return

    b_q = tl.load(queries_ptr + (i_t * H + i_h * G) * D + o_q, mask=m_q, other=0)
    p_table = page_table_ptr + i_t * table_width
    b_o, b_max, b_sum = _attend(
        b_q, keys_ptr, values_ptr, p_table, i_h, o_d, m_d, begin, end, scale, HKV, D, PAGE, BLOCK_G, BLOCK_D, BLOCK_N
    )
    b_o /= b_sum[:, None]

    if length >= context:
        p_gate = packed_ptr + i_t * ROW + (i_h * G + o_g)[:, None] * (2 * D) + D + o_d[None, :]
        b_y = b_o * tl.sigmoid(tl.load(p_gate, mask=m_q, other=0).to(tl.float32))
        tl.store(p_y, b_y.to(y_ptr.dtype.element_ty), mask=m_q)
    else:
        i_out = ((i_row.to(tl.int64) * HKV + i_h) * MAX_PARTS + i_part) * G
        tl.store(parts_ptr + i_out * D + o_q, b_o, mask=m_q)
        tl.store(sums_ptr + i_out + o_g, b_max + tl.log2(b_sum), mask=m_g)


@kernel
def _join_kernel(
    packed_ptr,  # [T, ROW]
    context_lens_ptr,  # [N]
    parts_ptr,  # [rows, HKV, MAX_PARTS, G, D] float32
    sums_ptr,  # [rows, HKV, MAX_PARTS, G] float32
    y_ptr,  # [T, H, D]
    first_row: tl.int32,
    num_sequences: tl.int32,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    ROW: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    PART_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: sequence x query head."""
    if OVERLAP:
        gdc_launch_dependents()
    G: tl.constexpr = H // HKV
    i_row, i_h = tl.program_id(0) // H, tl.program_id(0) % H
    i_t = (first_row + i_row).to(tl.int64)
    context = tl.load(context_lens_ptr + i_t, mask=i_t < num_sequences, other=0)
    length = _part_length(context, MAX_PARTS, PART_TOKENS)
    if OVERLAP:
        gdc_wait()  # who waits for this kernel waits for all before it
    if length >= context:
        return
    o_part, o_d = tl.arange(0, MAX_PARTS), tl.arange(0, BLOCK_D)
    m_part, m_d = o_part * length < context, o_d < D
    o_out = ((i_row.to(tl.int64) * HKV + i_h // G) * MAX_PARTS + o_part) * G + i_h % G
    b_sum = tl.load(sums_ptr + o_out, mask=m_part, other=float("-inf"))
    b_part = tl.load(parts_ptr + o_out[:, None] * D + o_d[None, :], mask=m_part[:, None] & m_d[None, :], other=0)
    b_weight = tl.exp2(b_sum - tl.max(b_sum, axis=0))
    b_o = tl.sum(b_part * b_weight[:, None], axis=0) / tl.sum(b_weight, axis=0)
    b_gate = tl.load(packed_ptr + i_t * ROW + i_h * 2 * D + D + o_d, mask=m_d, other=0).to(tl.float32)
    p_y = y_ptr + (i_t * H + i_h) * D + o_d
    tl.store(p_y, (b_o * tl.sigmoid(b_gate)).to(y_ptr.dtype.element_ty), mask=m_d)


def attention_decode(
    queries: Tensor, packed: Tensor, keys: Tensor, values: Tensor, step: Step, dims: AttentionDims, out: Tensor
) -> None:
    """Rows [0, N) of out [T, H * D]; rows of padding become zero, in a step without prompts all those that follow too.

    queries: [T, H, D]; packed: [T, *], (query, gate) by head; keys, values: [pages, page_size, Hkv, D].
    """
    decode = step.decode
    H, Hkv, D = dims.num_heads, dims.num_kv_heads, dims.head_dim
    num_rows = decode.page_table.shape[0] if step.prefill.num_sequences else out.shape[0]
    slab = max(1, WORKSPACE_BYTES // (4 * H * MAX_PARTS * D))
    group = H // Hkv
    parts = torch.empty(min(slab, num_rows), Hkv, MAX_PARTS, group, D, dtype=torch.float32, device=out.device)
    sums = torch.empty(min(slab, num_rows), Hkv, MAX_PARTS, group, dtype=torch.float32, device=out.device)
    attend, join = _bound(dims, packed.shape[1], keys.shape[1], keys.element_size())
    table = decode.page_table
    for first in range(0, num_rows, slab):
        count = min(slab, num_rows - first)
        attend(
            (count * Hkv * MAX_PARTS,), queries, packed, keys, values, table, decode.context_lens, parts, sums, out,
            D**-0.5 * _LOG2E, first, *table.shape,
        )  # fmt: skip
        join((count * H,), packed, decode.context_lens, parts, sums, out, first, table.shape[0])


@cache
def _bound(dims: AttentionDims, row: int, page: int, itemsize: int) -> tuple[BoundLaunch, BoundLaunch]:
    H, Hkv, D = dims.num_heads, dims.num_kv_heads, dims.head_dim
    block_d = max(16, int(triton.next_power_of_2(D)))
    both = {
        "H": H, "HKV": Hkv, "D": D, "ROW": row, "MAX_PARTS": MAX_PARTS, "PART_TOKENS": PART_TOKENS, "BLOCK_D": block_d,
    }  # fmt: skip
    attend = _launch_attend.bind(
        **both,
        PAGE=page,
        BLOCK_G=max(16, triton.next_power_of_2(H // Hkv)),
        BLOCK_N=min(64, max(16, _TILE_BYTES // (block_d * itemsize))),
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    return attend, _launch_join.bind(**both)


def _warmup(space: LaunchSpace) -> None:
    dims = space.attention
    if dims is None:
        return
    for dtype in space.activation_dtypes:
        packed, _, _, keys, values = space.attention_inputs(dims, dtype)
        queries = space.empty(space.num_tokens, dims.num_heads, dims.head_dim, dtype=dtype)
        out = space.tokens(dims.num_heads * dims.head_dim, dtype)
        attention_decode(queries, packed, keys, values, space.step(space.device), dims, out)


_launch_attend = Launcher(_attend_kernel, warmup=_warmup)
_launch_join = Launcher(_join_kernel, warmup=_warmup)
