"""Which experts see which tokens: the k likeliest of softmax(router logits), and the pairs (token, expert) by expert.

A token's experts stand in the order of their ids.  The last is the shared one, where there is one: every token sees it,
and its weight is the sigmoid of the logit behind the router's.  Pairs in the order of their experts are what grouped
products want; an expert's pairs are cut into tiles of ROWS.  How many there are, the device alone knows: the last entry
of `tiles` says it, and P pairs of E experts fill at most min(P, P // ROWS + E).

Ranks within a block of tokens and counts of the blocks before give each pair its place, so there are no atomics, and
the order is the stable one.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import Launcher, kernel
from hotstart.kernels.moe_tiles import warmup
from hotstart.kernels.ops import MoeDims
from hotstart.kernels.series import Call, Own, Part
from hotstart.kernels.target import current_target

__all__ = ["SPREAD_TOKENS", "choosing", "num_tiles", "routing"]

SPREAD_TOKENS = 256  # up to here over more programs; more of them are counted in larger blocks


@triton.jit
def _chosen(
    logits_ptr, o_t, m_t,
    E: tl.constexpr, K: tl.constexpr, ROW: tl.constexpr, RENORMALISE: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """1 for the experts of each token, among equals the first, and what each expert weighs: [BLOCK_T, BLOCK_E]."""
    o_e = tl.arange(0, BLOCK_E)
    m_x = m_t[:, None] & (o_e < E)[None, :]
    b_x = tl.load(logits_ptr + o_t.to(tl.int64)[:, None] * ROW + o_e[None, :], mask=m_x, other=0).to(tl.float32)
    b_x = tl.where((o_e < E)[None, :], b_x, float("-inf"))
    # Whole numbers in the order of the floats, where both zeros are one: a warp compares them at once.  A NaN of either
    # sign has its place among them, so that no logits choose what is no expert.
    b_bits = (b_x + 0.0).to(tl.int32, bitcast=True)
    b_left = tl.where((o_e < E)[None, :], b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF), -0x80000000)
    b_is = tl.zeros(b_x.shape, tl.int32)
    for _ in tl.static_range(K):
        b_best = tl.max(b_left, axis=1)
        i_e = tl.min(tl.where(b_left == b_best[:, None], o_e[None, :], BLOCK_E), axis=1)
        m_it = o_e[None, :] == i_e[:, None]
        b_is = tl.where(m_it, 1, b_is)
        b_left = tl.where(m_it, -0x80000000, b_left)
    b_p = tl.exp(b_x - tl.max(b_x, axis=1)[:, None])
    total = tl.sum(b_p * b_is, axis=1) if RENORMALISE else tl.sum(b_p, axis=1)
    return tl.where(m_t[:, None], b_is, 0), b_p / total[:, None]


@triton.jit
def _store_tiles(tiles_ptr, i, o_e, b_place, b_first, b_count, b_tiles, ROWS: tl.constexpr):
    """The i-th tile of each expert."""
    m_e = i < b_tiles
    p_tile = tiles_ptr + (b_place + i) * 4
    tl.store(p_tile, o_e, mask=m_e)
    tl.store(p_tile + 1, b_first + i * ROWS, mask=m_e)
    tl.store(p_tile + 2, b_first + b_count, mask=m_e)


@kernel
def _choose_kernel(
    logits_ptr,  # [T, ROW]
    kv_index_ptr,  # [T]
    weights_ptr,  # [T, PER_TOKEN] float32
    experts_ptr,  # [T, PER_TOKEN]: -1 for padding
    ranks_ptr,  # [T, PER_TOKEN]: among the block's pairs of this expert
    counts_ptr,  # [blocks, BLOCK_C]: pairs of each expert
    num_tokens: tl.int32,
    E: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: block of tokens."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    i_b = tl.program_id(0)
    o_t, o_e = i_b * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_E)
    m_in = o_t < num_tokens
    m_t = tl.load(kv_index_ptr + o_t, mask=m_in, other=-1) >= 0
    b_is, b_p = _chosen(logits_ptr, o_t, m_t, E, K, ROW, RENORMALISE, BLOCK_E)
    o_pair = o_t[:, None] * PER_TOKEN + tl.cumsum(b_is, axis=1) - 1
    tl.store(weights_ptr + o_pair, b_p, mask=b_is > 0)
    tl.store(experts_ptr + o_pair, o_e[None, :] + tl.zeros_like(b_is), mask=b_is > 0)
    tl.store(ranks_ptr + o_pair, tl.cumsum(b_is, axis=0) - b_is, mask=b_is > 0)
    for s in tl.static_range(PER_TOKEN):
        tl.store(experts_ptr + o_t * PER_TOKEN + s, tl.full([BLOCK_T], -1, tl.int32), mask=m_in & (m_t == 0))
    tl.store(counts_ptr + i_b * BLOCK_C + o_e, tl.sum(b_is, axis=0), mask=o_e < E)
    if PER_TOKEN > K:
        b_real = m_t.to(tl.int32)
        b_s = tl.load(logits_ptr + o_t.to(tl.int64) * ROW + E, mask=m_t, other=0).to(tl.float32)
        tl.store(weights_ptr + o_t * PER_TOKEN + K, tl.sigmoid(b_s), mask=m_t)
        tl.store(experts_ptr + o_t * PER_TOKEN + K, tl.full([BLOCK_T], E, tl.int32), mask=m_t)
        tl.store(ranks_ptr + o_t * PER_TOKEN + K, tl.cumsum(b_real, axis=0) - 1, mask=m_t)
        tl.store(counts_ptr + i_b * BLOCK_C + E, tl.sum(b_real, axis=0))


@kernel
def _place_kernel(
    experts_ptr,  # [T, PER_TOKEN]
    ranks_ptr,  # [T, PER_TOKEN]
    counts_ptr,  # [blocks, BLOCK_C]
    pairs_ptr,  # [T * PER_TOKEN]
    tiles_ptr,  # [*, 4]
    num_pairs: tl.int32,
    num_blocks: tl.int32,
    last_tile: tl.int32,
    EXPERTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: block of tokens."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    i_b = tl.program_id(0)
    o_e, o_b = tl.arange(0, BLOCK_C), tl.arange(0, 8)
    b_counts = tl.zeros([8, BLOCK_C], tl.int32)
    b_befores = tl.zeros([8, BLOCK_C], tl.int32)
    for first in range(0, num_blocks, 8):
        m_n = (first + o_b < num_blocks)[:, None] & (o_e < EXPERTS)[None, :]
        b_n = tl.load(counts_ptr + (first + o_b)[:, None] * BLOCK_C + o_e[None, :], mask=m_n, other=0)
        b_counts += b_n
        b_befores += tl.where((first + o_b < i_b)[:, None], b_n, 0)
    b_count, b_before = tl.sum(b_counts, axis=0), tl.sum(b_befores, axis=0)
    b_first = tl.cumsum(b_count, axis=0) - b_count
    o_p = tl.arange(0, BLOCK_P)
    m_p = (o_p < BLOCK_T * PER_TOKEN) & (i_b * (BLOCK_T * PER_TOKEN) + o_p < num_pairs)
    o_p += i_b * (BLOCK_T * PER_TOKEN)
    b_e = tl.load(experts_ptr + o_p, mask=m_p, other=-1)
    b_rank = tl.load(ranks_ptr + o_p, mask=m_p & (b_e >= 0), other=0)
    b_place = tl.gather(b_first + b_before, tl.maximum(b_e, 0), 0) + b_rank
    tl.store(pairs_ptr + b_place, o_p, mask=m_p & (b_e >= 0))
    b_tiles = (b_count + ROWS - 1) // ROWS
    b_place = tl.cumsum(b_tiles, axis=0) - b_tiles
    for i in range(i_b, tl.max(b_tiles, axis=0), num_blocks):
        _store_tiles(tiles_ptr, i, o_e, b_place, b_first, b_count, b_tiles, ROWS)
    if i_b == 0:
        tl.store(tiles_ptr + last_tile * 4, tl.sum(b_tiles, axis=0))


def num_tiles(num_pairs: int, num_experts: int, rows: int) -> int:
    """The most tiles that so many pairs fill."""
    return min(num_pairs, num_pairs // rows + num_experts)


def choosing(T: int, dims: MoeDims, block: int) -> Part:
    """The experts of each token, in blocks of so many.  logits: [T, logit_width]; kv_index: [T], negative for padding.

    Leaves weights [T, experts_per_token] and experts [T, experts_per_token], -1 for padding; ranks, of a pair among
    those of its expert in the block, and counts, of each expert in each block.
    """
    pairs, blocks = T * dims.experts_per_token, triton.cdiv(T, block)
    block_e, width = (triton.next_power_of_2(n) for n in (dims.num_experts, dims.stacked_experts))
    launch = _launch_choose.bind(
        E=dims.num_experts,
        K=dims.top_k,
        ROW=dims.logit_width,
        PER_TOKEN=dims.experts_per_token,
        RENORMALISE=dims.renormalise,
        BLOCK_T=block,
        BLOCK_E=block_e,
        BLOCK_C=width,
        num_warps=min(block, 8),
    )
    own = {
        "weights": Own(torch.float32, pairs),
        "experts": Own(torch.int32, pairs),
        "ranks": Own(torch.int32, pairs),
        "counts": Own(torch.int32, blocks * width),
    }
    return [Call(launch, "logits kv_index weights experts ranks counts", (blocks,), (T,))], own


def routing(T: int, dims: MoeDims, rows: int) -> Part:
    """And what the grouped products read, in tiles of at most `rows` pairs.

    Leaves pairs [P], token * experts_per_token + which of its, by expert, those of padding missing at the end; and
    tiles [most tiles + 1, 4]: expert, first and end of its rows among the pairs; last: how many.
    """
    block = _block(T, dims)
    calls, own = choosing(T, dims, block)
    num_pairs, blocks = T * dims.experts_per_token, triton.cdiv(T, block)
    last_tile = num_tiles(num_pairs, dims.stacked_experts, rows)
    launch = _launch_place.bind(
        EXPERTS=dims.stacked_experts,
        PER_TOKEN=dims.experts_per_token,
        ROWS=rows,
        BLOCK_T=block,
        BLOCK_C=triton.next_power_of_2(dims.stacked_experts),
        BLOCK_P=triton.next_power_of_2(block * dims.experts_per_token),
    )
    place = Call(launch, "experts ranks counts pairs tiles", (blocks,), (num_pairs, blocks, last_tile))
    placed = {"pairs": Own(torch.int32, num_pairs), "tiles": Own(torch.int32, (last_tile + 1) * 4)}
    return [*calls, place], own | placed


def _block(num_tokens: int, dims: MoeDims) -> int:
    if num_tokens <= SPREAD_TOKENS:
        return 4
    # Logits of a block: Triton 3.6 wants 8 bytes of shared memory for each, 3.7 half as many.
    most = 16384 if current_target().shared_bytes > 16384 * 8 else 8192
    width: int = triton.next_power_of_2(dims.num_experts)
    return min(128, max(8, most // width))


_launch_choose = Launcher(_choose_kernel, warmup=warmup)
_launch_place = Launcher(_place_kernel, warmup=warmup)
