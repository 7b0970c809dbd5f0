"""Causal attention of prompts to their pages, gated: y = sigmoid(gate) * softmax(q k^T) v, with an online softmax.

The query heads that share a key head are rows of the same tile, token by token: so a tile of keys serves all of them,
and a short prompt fills its tiles.  A sequence's rows (token, head of the group) are cut into blocks from its first one
on, so a token's tiles are its own sequence's alone.  Blocks of all sequences share one grid: sequence i begins at block
(rows before it) // BLOCK_M + i, which leaves room for its last, partly filled one.  A program finds its sequence by
counting those that begin at or before its block.  What follows the last sequence is padding, which is one sequence
more, without a context.

Source: Dao 2023, arXiv:2307.08691.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.attention_prefill_hopper import OPTIONS, ROWS, hopper_serves, launch_on_hopper
from hotstart.kernels.key import type_name
from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel
from hotstart.kernels.ops import AttentionDims
from hotstart.kernels.step import Step
from hotstart.kernels.target import Target
from hotstart.kernels.tiles import Trial, Tunable

__all__ = ["attention_prefill", "warm_up"]

LOG2E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class Family:
    head_dim: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Tiles:
    rows: int  # of queries, as many tokens as heads of a group share them
    keys: int
    warps: int
    stages: int


@triton.jit
def _attend(
    b_o,
    b_max,
    b_sum,
    b_q,
    p_keys,
    p_values,
    p_table,
    o_m,
    begin,
    end,
    scale,
    HKV: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Go on with keys [begin, end); MASKED: some queries (at positions o_m) must not see all of them."""
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    # A step ahead, so that keys and values are loads that wait for no other.
    i_page = tl.load(p_table + (begin + o_n) // PAGE, mask=begin + o_n < end, other=0)
    for start in range(begin, end, BLOCK_N):
        o_t = start + o_n
        o_kv = (i_page.to(tl.int64) * PAGE + o_t % PAGE)[:, None] * (HKV * D) + o_d[None, :]
        if MASKED or D < BLOCK_D:
            m_kv = (o_t < end)[:, None] & (o_d < D)[None, :]
            b_k = tl.load(p_keys + o_kv, mask=m_kv, other=0)
            b_v = tl.load(p_values + o_kv, mask=m_kv, other=0)
        else:
            b_k = tl.load(p_keys + o_kv)
            b_v = tl.load(p_values + o_kv)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")
        if MASKED:
            b_s = tl.where(o_t[None, :] <= o_m[:, None], b_s, float("-inf"))
        b_p, b_shrink, b_max, b_sum = _weigh(b_s, b_max, b_sum, scale)
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * b_shrink[:, None], input_precision="tf32x3")
        i_page = tl.load(p_table + (o_t + BLOCK_N) // PAGE, mask=o_t + BLOCK_N < end, other=0)
    return b_o, b_max, b_sum


@triton.jit
def _weigh(b_s, b_max, b_sum, scale):
    """Weights of a tile's scores, and by how much those of the tiles before it shrink."""
    b_new_max = tl.maximum(b_max, tl.max(b_s, axis=1) * scale)
    b_p = tl.exp2(b_s * scale - b_new_max[:, None])
    b_shrink = tl.exp2(b_max - b_new_max)
    return b_p, b_shrink, b_new_max, b_sum * b_shrink + tl.sum(b_p, axis=1)


@kernel
def _attention_prefill_kernel(
    queries_ptr,  # [T, H, D]
    packed_ptr,  # [T, ROW]: for each head its query, then its gate
    keys_ptr,  # [pages, PAGE, HKV, D]
    values_ptr,  # likewise
    page_table_ptr,  # [N, table_width]
    context_lens_ptr,  # [N]
    cu_seqlens_ptr,  # [N + 1]
    y_ptr,  # [T, H, D]
    scale: tl.float32,
    first_token: tl.int32,
    num_tokens: tl.int32,
    num_sequences: tl.int32,
    num_blocks: tl.int32,
    table_width: tl.int32,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    ROW: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program: block of rows x key head.  Late blocks, which see most keys, come first."""
    G: tl.constexpr = H // HKV
    i_h = tl.program_id(0) % HKV
    i_block = num_blocks - 1 - tl.program_id(0) // HKV
    i_n = tl.full([], -1, tl.int32)
    for some in range(0, num_sequences + 1, 128):
        o_n = some + tl.arange(0, 128)
        b_before = tl.load(cu_seqlens_ptr + o_n, mask=o_n <= num_sequences, other=0) - first_token
        begins = b_before * G // BLOCK_M + o_n
        i_n += tl.sum(((begins <= i_block) & (o_n <= num_sequences)).to(tl.int32), axis=0)
    # Together, since each waits for as long as all.
    context = tl.load(context_lens_ptr + i_n, mask=i_n < num_sequences, other=0)
    begin = tl.load(cu_seqlens_ptr + i_n)
    end = tl.load(cu_seqlens_ptr + i_n + 1, mask=i_n < num_sequences, other=num_tokens)
    first = (i_block - (begin - first_token) * G // BLOCK_M - i_n) * BLOCK_M  # within the sequence
    length = end - begin
    if first >= length * G:
        return
    o_r = first + tl.arange(0, BLOCK_M)
    o_t, o_g = o_r // G, o_r % G
    o_d = tl.arange(0, BLOCK_D)
    m_q = (o_t < length)[:, None] & (o_d < D)[None, :]
    o_y = ((begin + o_t).to(tl.int64) * H + i_h * G + o_g)[:, None] * D + o_d[None, :]
    if i_n == num_sequences:
        tl.store(y_ptr + o_y, tl.zeros([BLOCK_M, BLOCK_D], tl.float32).to(y_ptr.dtype.element_ty), mask=m_q)
        return

    past = context - length
    b_q = tl.load(queries_ptr + o_y, mask=m_q, other=0)
    b_o = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    p_keys = keys_ptr + i_h * D
    p_values = values_ptr + i_h * D
    p_table = page_table_ptr + i_n.to(tl.int64) * table_width
    o_m = past + o_t
    seen_by_all = (past + first // G + 1) // BLOCK_N * BLOCK_N
    seen_by_some = tl.minimum(past + (first + BLOCK_M - 1) // G + 1, context)
    b_o, b_max, b_sum = _attend(
        b_o, b_max, b_sum, b_q, p_keys, p_values, p_table, o_m, 0, seen_by_all, scale,
        HKV, D, PAGE, BLOCK_N, BLOCK_D, False,
    )  # fmt: skip
    b_o, b_max, b_sum = _attend(
        b_o, b_max, b_sum, b_q, p_keys, p_values, p_table, o_m, seen_by_all, seen_by_some, scale,
        HKV, D, PAGE, BLOCK_N, BLOCK_D, True,
    )  # fmt: skip
    p_gate = packed_ptr + (begin + o_t).to(tl.int64)[:, None] * ROW + ((i_h * G + o_g) * 2 * D + D)[:, None]
    b_gate = tl.load(p_gate + o_d[None, :], mask=m_q, other=0).to(tl.float32)
    # sigmoid(x) = 1 / (1 + exp(-x)), whose division is the square of a reciprocal root: one instruction, not eight.
    b_root = tl.rsqrt(1 + tl.exp2(b_gate * -LOG2E))
    b_y = b_o * (1 / b_sum)[:, None] * (b_root * b_root)
    tl.store(y_ptr + o_y, b_y.to(y_ptr.dtype.element_ty), mask=m_q)


def attention_prefill(
    queries: Tensor, packed: Tensor, keys: Tensor, values: Tensor, step: Step, dims: AttentionDims, out: Tensor
) -> None:
    """The prompts' rows of out [T, H * D], and zeros in all rows that follow them.

    queries: [T, H, D]; packed: [T, *], (query, gate) by head; keys, values: [pages, page_size, Hkv, D].
    """
    tiles = None if hopper_serves(dims, queries.dtype, keys.shape[1]) else _tiles(_family(dims, queries.dtype))
    rows = ROWS.value if tiles is None else tiles.rows
    prefill, T = step.prefill, out.shape[0]
    H, Hkv, D = dims.num_heads, dims.num_kv_heads, dims.head_dim
    num_sequences, table_width = prefill.page_table.shape
    num_blocks = (T - prefill.first_token) * (H // Hkv) // rows + num_sequences + 1
    launch = _bound(dims, packed.shape[1], keys.shape[1], tiles)
    launch(
        (num_blocks * Hkv,), queries, packed, keys, values, prefill.page_table, prefill.context_lens,
        prefill.cu_seqlens, out, D**-0.5 * LOG2E.value, prefill.first_token, T, num_sequences, num_blocks, table_width,
    )  # fmt: skip


@cache
def _bound(dims: AttentionDims, row: int, page: int, tiles: Tiles | None) -> BoundLaunch:
    """`tiles`: None for the kernel of Hopper, whose tiles are its own."""
    shape = {"H": dims.num_heads, "HKV": dims.num_kv_heads, "D": dims.head_dim, "ROW": row, "PAGE": page}
    if tiles is None:
        return launch_on_hopper.bind(**shape, **OPTIONS)
    return _launch.bind(
        **shape,
        BLOCK_M=tiles.rows,
        BLOCK_N=tiles.keys,
        BLOCK_D=_block_d(dims.head_dim),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _family(dims: AttentionDims, dtype: torch.dtype) -> Family:
    return Family(dims.head_dim, type_name(dtype))


def _block_d(head_dim: int) -> int:
    return max(16, int(triton.next_power_of_2(head_dim)))


def _candidates(target: Target, family: Family) -> tuple[Tiles, ...]:
    if family.dtype == "fp32":  # three products for each: registers are what is short
        return (Tiles(16, 16, 4, 1),)
    row = 2 * _block_d(family.head_dim)  # bytes
    if 90 <= target.arch < 120:  # wgmma: 64 rows to each four warps
        tiles = [Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 3), Tiles(64, 32, 4, 2)]
    else:
        tiles = [Tiles(64, 32, 8, 2), Tiles(64, 64, 8, 2), Tiles(64, 32, 8, 3), Tiles(32, 32, 4, 2)]
    fitting = (t for t in tiles if (t.rows + 2 * t.stages * t.keys) * row <= target.shared_bytes)
    return tuple(fitting) or (Tiles(16, 16, 4, 1),)


def _trial(space: LaunchSpace, family: Family, lengths: tuple[int, ...]) -> Trial:
    dims = space.attention
    assert dims is not None
    num_tokens, num_pages = sum(lengths), sum(-(-length // space.page_size) for length in lengths)
    step = space.prompts(space.device, lengths)
    dtype = next(d for d in space.activation_dtypes if type_name(d) == family.dtype)
    packed = space.empty(num_tokens, dims.packed_width, dtype=dtype)
    queries = space.empty(num_tokens, dims.num_heads, dims.head_dim, dtype=dtype)
    on = replace(space, num_pages=num_pages)
    keys, values = (on.pages(dims.num_kv_heads, dims.head_dim, dtype=dtype) for _ in range(2))
    out = space.empty(num_tokens, dims.num_heads * dims.head_dim, dtype=dtype)
    for tensor in (packed, queries, keys, values):
        tensor.normal_()  # zeros draw less power, and run faster
    # Each sequence has pages of its own; in the step that start-up makes all of them are page 0.
    table = step.prefill.page_table
    table.copy_(torch.arange(table.numel(), device=table.device).view(table.shape) * 7919 % num_pages)

    def call() -> None:
        attention_prefill(queries, packed, keys, values, step, dims, out)

    return Trial(call, (packed, queries, keys, values, out))


def _families(space: LaunchSpace) -> tuple[Family, ...]:
    if space.attention is None:
        return ()
    dims, page = space.attention, space.page_size
    dtypes = (dtype for dtype in space.activation_dtypes if not hopper_serves(dims, dtype, page))
    return tuple(_family(dims, dtype) for dtype in dtypes)


def warm_up(space: LaunchSpace, *, on_hopper: bool) -> None:
    """One of the two kernels, with the dtypes that it serves."""
    dims = space.attention
    if dims is None:
        return
    for dtype in space.activation_dtypes:
        if hopper_serves(dims, dtype, space.page_size) != on_hopper:
            continue
        packed, _, _, keys, values = space.attention_inputs(dims, dtype)
        queries = space.empty(space.num_tokens, dims.num_heads, dims.head_dim, dtype=dtype)
        out = space.tokens(dims.num_heads * dims.head_dim, dtype)
        attention_prefill(queries, packed, keys, values, space.step(space.device), dims, out)


def _warmup(space: LaunchSpace) -> None:
    warm_up(space, on_hopper=False)


_launch = Launcher(_attention_prefill_kernel, warmup=_warmup)
_tiles = Tunable("attention_prefill", (_launch,), families=_families, candidates=_candidates, trial=_trial)
