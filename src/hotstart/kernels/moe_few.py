"""The mixture of experts for a few tokens, whose experts are all but distinct: each pair streams its expert's matrices.

Two launches and no sorting: every program of the first chooses its token's experts anew, which is cheaper than waiting
for another to do so; a program of the second adds up all experts of its columns.  Sums are in float32 throughout.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel, launches_overlap
from hotstart.kernels.ops import MoeDims

__all__ = ["MOST_TOKENS", "moe_few"]

MOST_TOKENS = 4


@triton.jit
def _choice(p_logits, i_s, E: tl.constexpr, K: tl.constexpr, RENORMALISE: tl.constexpr, BLOCK_E: tl.constexpr):
    """The expert in slot i_s, likeliest first, and its weight."""
    o_e = tl.arange(0, BLOCK_E)
    b_x = tl.load(p_logits + o_e, mask=o_e < E, other=float("-inf")).to(tl.float32)
    top = tl.max(b_x, axis=0)
    total = tl.sum(tl.exp(b_x - top), axis=0)
    chosen = tl.full([], 0, tl.int32)
    weight, among = tl.zeros([], tl.float32), tl.zeros([], tl.float32)
    for k in tl.static_range(K):
        best = tl.max(b_x, axis=0)
        # Of NaN nothing is the largest; the first expert then stands for all.
        i_e = tl.min(tl.where(b_x == best, o_e, BLOCK_E), axis=0) % BLOCK_E
        p = tl.exp(best - top)
        among += p
        chosen = tl.where(k == i_s, i_e, chosen)
        weight = tl.where(k == i_s, p, weight)
        b_x = tl.where(o_e == i_e, float("-inf"), b_x)
    if RENORMALISE:
        total = among
    return chosen, weight / total


@kernel
def _few_gate_up_kernel(
    x_ptr,  # [T, D]
    logits_ptr,  # [T, ROW]
    kv_index_ptr,  # [T], negative for padding
    weight_ptr,  # [experts, 2 * WIDTH, D]: gate | up
    weights_ptr,  # [T, SLOTS] float32: out
    experts_ptr,  # [T, SLOTS]: out
    hidden_ptr,  # [T, SLOTS, WIDTH]: out
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    SLOTS: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: pair (token, slot) x block of columns, of gate and as many of up."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    NUM_BLOCKS: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    EXACT: tl.constexpr = D % DEPTH == 0 and WIDTH % COLUMNS == 0
    i_pair, i_b = tl.program_id(0) // NUM_BLOCKS, tl.program_id(0) % NUM_BLOCKS
    i_t, i_s = i_pair // SLOTS, i_pair % SLOTS
    if tl.load(kv_index_ptr + i_t) < 0:
        return
    if i_s < K:
        i_e, weight = _choice(logits_ptr + i_t * ROW, i_s, E, K, RENORMALISE, BLOCK_E)
    else:
        i_e, weight = tl.full([], E, tl.int32), tl.sigmoid(tl.load(logits_ptr + i_t * ROW + E).to(tl.float32))
    if i_b == 0:
        tl.store(weights_ptr + i_pair, weight)
        tl.store(experts_ptr + i_pair, i_e)
    o_d, o_c = tl.arange(0, DEPTH), i_b * COLUMNS + tl.arange(0, COLUMNS)
    p_x = x_ptr + i_t * D + o_d
    p_w = weight_ptr + i_e.to(tl.int64) * (2 * WIDTH * D) + o_c[:, None] * D + o_d[None, :]
    b_gate = tl.zeros([COLUMNS, DEPTH], tl.float32)
    b_up = tl.zeros([COLUMNS, DEPTH], tl.float32)
    for start in tl.static_range(0, D, DEPTH):
        m_w = ((o_d < D - start)[None, :] & (o_c < WIDTH)[:, None]) | EXACT
        b_x = tl.load(p_x + start, mask=(o_d < D - start) | EXACT, other=0).to(tl.float32)[None, :]
        b_gate += tl.load(p_w + start, mask=m_w, other=0).to(tl.float32) * b_x
        b_up += tl.load(p_w + WIDTH * D + start, mask=m_w, other=0).to(tl.float32) * b_x
    b_g = tl.sum(b_gate, axis=1)
    b_hidden = b_g * tl.sigmoid(b_g) * tl.sum(b_up, axis=1)
    tl.store(hidden_ptr + i_pair * WIDTH + o_c, b_hidden.to(hidden_ptr.dtype.element_ty), mask=o_c < WIDTH)


@kernel
def _few_down_kernel(
    hidden_ptr,  # [T, SLOTS, WIDTH]
    weight_ptr,  # [experts, D, WIDTH]
    weights_ptr,  # [T, SLOTS] float32
    experts_ptr,  # [T, SLOTS]
    kv_index_ptr,  # [T]
    y_ptr,  # [T, D]
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: token x block of columns."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    NUM_BLOCKS: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    EXACT: tl.constexpr = WIDTH % DEPTH == 0 and D % COLUMNS == 0
    i_t, i_b = tl.program_id(0) // NUM_BLOCKS, tl.program_id(0) % NUM_BLOCKS
    o_d, o_c = tl.arange(0, DEPTH), i_b * COLUMNS + tl.arange(0, COLUMNS)
    b_y = tl.zeros([COLUMNS, DEPTH], tl.float32)
    if tl.load(kv_index_ptr + i_t) >= 0:
        for s in tl.static_range(SLOTS):
            i_pair = i_t * SLOTS + s
            p_w = weight_ptr + tl.load(experts_ptr + i_pair).to(tl.int64) * (D * WIDTH)
            weight = tl.load(weights_ptr + i_pair)
            for start in tl.static_range(0, WIDTH, DEPTH):
                m_d = (o_d < WIDTH - start) | EXACT
                b_h = tl.load(hidden_ptr + i_pair * WIDTH + start + o_d, mask=m_d, other=0).to(tl.float32) * weight
                p_block = p_w + o_c[:, None] * WIDTH + start + o_d[None, :]
                b_w = tl.load(p_block, mask=(m_d[None, :] & (o_c < D)[:, None]) | EXACT, other=0)
                b_y += b_w.to(tl.float32) * b_h[None, :]
    tl.store(y_ptr + i_t * D + o_c, tl.sum(b_y, axis=1).to(y_ptr.dtype.element_ty), mask=o_c < D)


def moe_few(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, dims: MoeDims, kv_index: Tensor) -> Tensor:
    """See `moe`, for at most MOST_TOKENS tokens."""
    T, D = x.shape
    at = _constants(D, dims, launches_overlap())
    weights = torch.empty(T, dims.slots, dtype=torch.float32, device=x.device)
    experts = torch.empty(T, dims.slots, dtype=torch.int32, device=x.device)
    hidden, y = x.new_empty(T * dims.slots, dims.width), x.new_empty(T, D)
    at.gate_up((T * dims.slots * at.gate_up_blocks,), x, logits, kv_index, gate_up, weights, experts, hidden)
    at.down((T * at.down_blocks,), hidden, down, weights, experts, kv_index, y)
    return y


class Constants(NamedTuple):
    gate_up: BoundLaunch
    down: BoundLaunch
    gate_up_blocks: int
    down_blocks: int


_GATE_UP = {"COLUMNS": 8, "DEPTH": 512, "num_warps": 4}
_DOWN = {"COLUMNS": 8, "DEPTH": 512, "num_warps": 4}


@functools.cache
def _constants(D: int, dims: MoeDims, overlap: bool) -> Constants:
    common = {"D": D, "WIDTH": dims.width, "SLOTS": dims.slots, "OVERLAP": overlap, "launch_pdl": overlap}
    return Constants(
        _launch_gate_up.bind(
            E=dims.num_experts,
            K=dims.top_k,
            ROW=dims.logit_width,
            RENORMALISE=dims.renormalise,
            BLOCK_E=triton.next_power_of_2(dims.num_experts),
            **_fitting(_GATE_UP, D),
            **common,
        ),
        _launch_down.bind(**_fitting(_DOWN, dims.width), **common),
        triton.cdiv(dims.width, _GATE_UP["COLUMNS"]),
        triton.cdiv(D, _DOWN["COLUMNS"]),
    )


def _fitting(tiles: dict[str, int], length: int) -> dict[str, int]:
    """Not deeper than the sums are long."""
    return tiles | {"DEPTH": min(tiles["DEPTH"], int(triton.next_power_of_2(length)))}


def _warmup(space: LaunchSpace) -> None:
    """Of padding alone, so the weights of one expert are enough, where all of them may be most of the memory."""
    if space.moe is None:
        return
    dims, T, D = space.moe, 2, space.hidden_size
    kv_index = torch.full((T,), -1, dtype=torch.int64, device=space.device)
    for dtype in space.activation_dtypes:
        gate_up, down = space.weight(1, 2 * dims.width, D, dtype=dtype), space.weight(1, D, dims.width, dtype=dtype)
        logits = space.empty(T, dims.logit_width, dtype=dtype)
        moe_few(space.empty(T, D, dtype=dtype), logits, gate_up, down, dims, kv_index)


_launch_gate_up = Launcher(_few_gate_up_kernel, warmup=_warmup)
_launch_down = Launcher(_few_down_kernel, warmup=_warmup)
