"""The mixture of experts for a few tokens, whose experts are all but distinct: each pair streams its expert's matrices.

Nothing is sorted, and a program of the second product adds up all experts of its columns, in float32.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import Launcher, kernel
from hotstart.kernels.moe_tiles import warmup
from hotstart.kernels.ops import MoeDims
from hotstart.kernels.series import Call, Own, Part

__all__ = ["MOST_TOKENS", "products_of_few"]

MOST_TOKENS = 2


@kernel
def _few_gate_up_kernel(
    x_ptr,  # [T, D]
    experts_ptr,  # [T, PER_TOKEN], negative for padding
    weight_ptr,  # [experts, 2 * WIDTH, D]: gate | up
    hidden_ptr,  # [T, PER_TOKEN, WIDTH]: out
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: pair (token, expert) x block of columns, of gate and as many of up.

    x is older than the launch before the last, so it needs no wait.
    """
    NUM_BLOCKS: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    EXACT: tl.constexpr = D % DEPTH == 0 and WIDTH % COLUMNS == 0
    PIECES: tl.constexpr = (D + DEPTH - 1) // DEPTH
    i_pair, i_b = tl.program_id(0) // NUM_BLOCKS, tl.program_id(0) % NUM_BLOCKS
    o_d, o_c = tl.arange(0, DEPTH), i_b * COLUMNS + tl.arange(0, COLUMNS)
    b_xs = ()
    for i in tl.static_range(PIECES):
        b_x = tl.load(x_ptr + i_pair // PER_TOKEN * D + i * DEPTH + o_d, mask=(o_d < D - i * DEPTH) | EXACT, other=0)
        b_xs += (b_x,)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    i_e = tl.load(experts_ptr + i_pair).to(tl.int64)
    if i_e < 0:
        return
    p_w = weight_ptr + i_e * (2 * WIDTH * D) + o_c[:, None] * D + o_d[None, :]
    b_gates = ()
    b_ups = ()
    for i in tl.static_range(PIECES):
        m_w = ((o_d < D - i * DEPTH)[None, :] & (o_c < WIDTH)[:, None]) | EXACT
        b_w = tl.load(p_w + i * DEPTH, mask=m_w, other=0)
        b_gates += (b_w,)
        b_w = tl.load(p_w + WIDTH * D + i * DEPTH, mask=m_w, other=0)
        b_ups += (b_w,)
    # Else the assembler asks for one after the other, to save registers.
    tl.debug_barrier()
    b_gate = tl.zeros([COLUMNS, DEPTH], tl.float32)
    b_up = tl.zeros([COLUMNS, DEPTH], tl.float32)
    for i in tl.static_range(PIECES):
        b_x = b_xs[i].to(tl.float32)[None, :]
        b_gate += b_gates[i].to(tl.float32) * b_x
        b_up += b_ups[i].to(tl.float32) * b_x
    b_g = tl.sum(b_gate, axis=1)
    b_hidden = b_g * tl.sigmoid(b_g) * tl.sum(b_up, axis=1)
    tl.store(hidden_ptr + i_pair * WIDTH + o_c, b_hidden.to(hidden_ptr.dtype.element_ty), mask=o_c < WIDTH)


@kernel
def _few_down_kernel(
    hidden_ptr,  # [T, PER_TOKEN, WIDTH]
    weight_ptr,  # [experts, D, WIDTH]
    weights_ptr,  # [T, PER_TOKEN] float32
    experts_ptr,  # [T, PER_TOKEN], negative for padding
    residual_ptr,  # [T, D]: added to
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: token x block of columns.

    Which experts they are, the launch before the last has told: their first matrices are asked for before this one
    waits for the last.  Padding reads the first expert's, for nothing.
    """
    NUM_BLOCKS: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    EXACT: tl.constexpr = WIDTH % DEPTH == 0 and D % COLUMNS == 0
    PIECES: tl.constexpr = (WIDTH + DEPTH - 1) // DEPTH
    i_t, i_b = tl.program_id(0) // NUM_BLOCKS, tl.program_id(0) % NUM_BLOCKS
    o_d, o_c = tl.arange(0, DEPTH), i_b * COLUMNS + tl.arange(0, COLUMNS)
    p_block = weight_ptr + o_c[:, None] * WIDTH + o_d[None, :]
    m_c = o_c < D
    b_ws = ()
    for i in tl.static_range(AHEAD):
        b_w = _piece(p_block, experts_ptr, i_t, i, o_d, m_c, D, WIDTH, PER_TOKEN, DEPTH, EXACT)
        b_ws += (b_w,)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    b_y = tl.zeros([COLUMNS, DEPTH], tl.float32)
    for i in tl.static_range(PER_TOKEN * PIECES):
        if i < AHEAD:
            b_w = b_ws[i]
        else:
            b_w = _piece(p_block, experts_ptr, i_t, i, o_d, m_c, D, WIDTH, PER_TOKEN, DEPTH, EXACT)
        i_pair = i_t * PER_TOKEN + i // PIECES
        p_hidden = hidden_ptr + i_pair * WIDTH + i % PIECES * DEPTH + o_d
        b_h = tl.load(p_hidden, mask=(o_d < WIDTH - i % PIECES * DEPTH) | EXACT, other=0).to(tl.float32)
        b_y += b_w.to(tl.float32) * (b_h * tl.load(weights_ptr + i_pair))[None, :]
    m_c &= tl.load(experts_ptr + i_t * PER_TOKEN) >= 0
    p_residual = residual_ptr + i_t * D + o_c
    b_sum = tl.load(p_residual, mask=m_c, other=0).to(tl.float32) + tl.sum(b_y, axis=1)
    tl.store(p_residual, b_sum.to(residual_ptr.dtype.element_ty), mask=m_c)


@triton.jit
def _piece(
    p_block, experts_ptr, i_t, i, o_d, m_c,
    D: tl.constexpr, WIDTH: tl.constexpr, PER_TOKEN: tl.constexpr, DEPTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Of the weights of a token's experts, the i-th along their sums: DEPTH of one expert."""
    PIECES: tl.constexpr = (WIDTH + DEPTH - 1) // DEPTH
    i_e = tl.maximum(tl.load(experts_ptr + i_t * PER_TOKEN + i // PIECES), 0).to(tl.int64)
    m_w = (m_c[:, None] & (o_d < WIDTH - i % PIECES * DEPTH)[None, :]) | EXACT
    return tl.load(p_block + i_e * (D * WIDTH) + i % PIECES * DEPTH, mask=m_w, other=0)


_GATE_UP = {"COLUMNS": 2, "DEPTH": 2048, "num_warps": 4}
_DOWN = {"COLUMNS": 4, "DEPTH": 512, "num_warps": 2}
AHEAD = 4  # pieces that are asked for before the wait


def products_of_few(T: int, D: int, dims: MoeDims, dtype: torch.dtype) -> Part:
    """As `products` (moe_gemm.py), from what `choosing` leaves; for at most MOST_TOKENS tokens."""
    common = {"D": D, "WIDTH": dims.width, "PER_TOKEN": dims.experts_per_token}
    gate_up = _launch_gate_up.bind(**_fitting(_GATE_UP, D), **common)
    down = _launch_down.bind(**_fitting(_DOWN, dims.width), AHEAD=min(AHEAD, dims.experts_per_token), **common)
    pairs = T * dims.experts_per_token
    calls = [
        Call(gate_up, "x experts gate_up hidden", (pairs * triton.cdiv(dims.width, _GATE_UP["COLUMNS"]),), ()),
        Call(down, "hidden down weights experts residual", (T * triton.cdiv(D, _DOWN["COLUMNS"]),), ()),
    ]
    return calls, {"hidden": Own(dtype, pairs * dims.width)}


def _fitting(tiles: dict[str, int], length: int) -> dict[str, int]:
    """Not deeper than the sums are long."""
    return tiles | {"DEPTH": min(tiles["DEPTH"], int(triton.next_power_of_2(length)))}


_launch_gate_up = Launcher(_few_gate_up_kernel, warmup=warmup)
_launch_down = Launcher(_few_down_kernel, warmup=warmup, in_place=True)
