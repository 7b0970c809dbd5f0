"""Which experts see which tokens: the k likeliest of softmax(router logits), and the pairs (token, choice) by expert.

Pairs in the order of their experts are what grouped products want.  How many an expert gets, the device alone knows, so
its rows are cut into tiles, and there are more places for tiles than are ever filled: P pairs of E experts fill at most
min(P, P // ROWS + E).  While pairs are few, the pair that begins a tile has the tile's place; once they are many,
expert e begins at place (pairs before it) // ROWS + e.  So every program knows its places alone: one launch, no
atomics, and the order is the stable one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.launch import Launcher, LaunchSpace, kernel
from hotstart.kernels.moe_tiles import all_tiles
from hotstart.kernels.ops import MoeDims

__all__ = ["num_tiles", "route", "sort_pairs"]


@kernel
def _route_kernel(
    logits_ptr,  # [T, E]
    kv_index_ptr,  # [T], negative for padding
    weights_ptr,  # [T, K] float32
    experts_ptr,  # [T, K] int32
    E: tl.constexpr,
    K: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program: token.  A token of padding asks for expert E, whom nobody is."""
    i_t = tl.program_id(0).to(tl.int64)
    o_e, o_k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    b_chosen = tl.full([BLOCK_K], E, tl.int32)
    b_weight = tl.zeros([BLOCK_K], tl.float32)
    if tl.load(kv_index_ptr + i_t) >= 0:
        b_x = tl.load(logits_ptr + i_t * E + o_e, mask=o_e < E, other=float("-inf")).to(tl.float32)
        b_p = tl.exp(b_x - tl.max(b_x, axis=0))
        total = tl.sum(b_p, axis=0)
        b_p = tl.where(o_e < E, b_p, -1)
        for k in tl.static_range(K):
            best = tl.max(b_p, axis=0)
            i_e = tl.min(tl.where(b_p == best, o_e, E), axis=0)  # among equals the first
            b_chosen = tl.where(o_k == k, i_e, b_chosen)
            b_weight = tl.where(o_k == k, best, b_weight)
            b_p = tl.where(o_e == i_e, -1, b_p)
        if RENORMALISE:
            total = tl.sum(b_weight, axis=0)
        b_weight /= total
    tl.store(weights_ptr + i_t * K + o_k, b_weight, mask=o_k < K)
    tl.store(experts_ptr + i_t * K + o_k, b_chosen, mask=o_k < K)


@kernel
def _sort_kernel(
    experts_ptr,  # [P]
    pairs_ptr,  # [P]: out, the pairs in the order of their experts
    tiles_ptr,  # [tiles, 4]: out, expert or -1, first and end of its rows among the sorted pairs
    num_pairs: tl.int32,
    num_tiles: tl.int32,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Program: expert; the last one is that of padding, which has no tiles but the places that are left over."""
    i_e = tl.program_id(0)
    few = num_tiles == num_pairs
    o_p = tl.arange(0, BLOCK_P)
    before, count = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for start in range(0, num_pairs, BLOCK_P):
        b_e = tl.load(experts_ptr + start + o_p, mask=start + o_p < num_pairs, other=E + 1)
        before += tl.sum((b_e < i_e).to(tl.int32), axis=0)
        count += tl.sum((b_e == i_e).to(tl.int32), axis=0)
    place = before // ROWS + i_e
    last = tl.where(i_e < E, (before + count) // ROWS + i_e + 1, num_tiles)
    for i in range(place, tl.where(few, place, last)):
        first = before + (i - place) * ROWS
        _store_tile(tiles_ptr + i * 4, i_e, first, before + count, first < tl.where(i_e < E, before + count, 0))

    place = before
    for start in range(0, num_pairs, BLOCK_P):
        b_e = tl.load(experts_ptr + start + o_p, mask=start + o_p < num_pairs, other=E + 1)
        m_mine = b_e == i_e
        b_rank = tl.cumsum(m_mine.to(tl.int32), axis=0) - 1 + place
        tl.store(pairs_ptr + b_rank, start + o_p, mask=m_mine)
        if few:
            m_first = ((b_rank - before) % ROWS == 0) & (o_p < tl.where(i_e < E, BLOCK_P, 0))
            _store_tile(tiles_ptr + (start + o_p) * 4, i_e, b_rank, before + count, m_first, m_mine)
        place += tl.sum(m_mine.to(tl.int32), axis=0)


@triton.jit
def _store_tile(p_tile, i_e, first, end, is_one, mask=None):
    tl.store(p_tile, tl.where(is_one, i_e, -1), mask=mask)
    tl.store(p_tile + 1, first, mask=mask)
    tl.store(p_tile + 2, end, mask=mask)


def num_tiles(num_pairs: int, num_experts: int, rows: int) -> int:
    """The most tiles that so many pairs fill."""
    return min(num_pairs, num_pairs // rows + num_experts)


def route(router_logits: Tensor, kv_index: Tensor, dims: MoeDims) -> tuple[Tensor, Tensor]:
    """Weights [T, k] float32 and expert ids [T, k] int32; ids of padding (kv_index < 0) are E."""
    T, E = router_logits.shape
    weights = torch.empty(T, dims.top_k, dtype=torch.float32, device=router_logits.device)
    experts = torch.empty(T, dims.top_k, dtype=torch.int32, device=router_logits.device)
    block_e = triton.next_power_of_2(E)
    _launch_route(
        (T,), router_logits, kv_index, weights, experts,
        E=E, K=dims.top_k, RENORMALISE=dims.renormalise, BLOCK_E=block_e,
        BLOCK_K=triton.next_power_of_2(dims.top_k), num_warps=max(1, block_e // 512),
    )  # fmt: skip
    return weights, experts


def sort_pairs(experts: Tensor, dims: MoeDims, rows: int) -> tuple[Tensor, Tensor]:
    """Pairs [P] in the order of their experts, and tiles of at most `rows` of them [tiles, 4].  experts: [T, k]."""
    pairs = experts.new_empty(experts.numel())
    count = num_tiles(len(pairs), dims.num_experts, rows)
    tiles = torch.empty(count, 4, dtype=torch.int32, device=experts.device)
    _launch_sort(
        (dims.num_experts + 1,), experts, pairs, tiles, len(pairs), count,
        E=dims.num_experts, ROWS=rows, BLOCK_P=2048, num_warps=8,
    )  # fmt: skip
    return pairs, tiles


def _warmup(space: LaunchSpace) -> None:
    dims = space.moe
    if dims is None:
        return
    kv_index = space.step(space.device).kv_index
    for dtype in space.activation_dtypes:
        logits = space.empty(len(kv_index), dims.num_experts, dtype=dtype)
        for tiles in all_tiles(dtype):
            sort_pairs(route(logits, kv_index, dims)[1], dims, tiles.rows)


_launch_route = Launcher(_route_kernel, warmup=_warmup)
_launch_sort = Launcher(_sort_kernel, warmup=_warmup)
