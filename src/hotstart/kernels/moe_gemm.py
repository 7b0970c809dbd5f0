"""Products of tokens with their experts' matrices, tile by tile of the sorted pairs (moe_route.py).

    hidden = silu(x gate^T) * (x up^T);  part = p * (hidden down^T);  y = sum of the parts of a token, in its own order

Every row of every product is summed in one order, whatever tile it stands in, so neither a neighbour nor the number of
tokens changes a bit of it.  Parts are kept in blocks of columns, [blocks, P, COLUMNS], so that a slab of blocks is
dense and a row's place follows from constants.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.launch import Launcher, LaunchSpace, kernel
from hotstart.kernels.moe_tiles import Tiles, all_tiles
from hotstart.kernels.ops import MoeDims

__all__ = ["expert_down", "expert_gate_up"]

PARTS_BYTES = 64 << 20  # of parts at once: more columns go one slab after the other


@kernel
def _gate_up_kernel(
    x_ptr,  # [T, D]
    weight_ptr,  # [E, 2 * WIDTH, D]: gate | up
    pairs_ptr,  # [P]
    tiles_ptr,  # [tiles, 4]
    hidden_ptr,  # [P, WIDTH]: in the order of the sorted pairs
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Program: tile of pairs x block of columns."""
    num_blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    p_tile = tiles_ptr + tl.program_id(0) // num_blocks * 4
    i_e = tl.load(p_tile).to(tl.int64)
    if i_e < 0:
        return
    o_r = tl.load(p_tile + 1) + tl.arange(0, ROWS)
    m_r = o_r < tl.load(p_tile + 2)
    o_c = tl.program_id(0) % num_blocks * COLUMNS + tl.arange(0, COLUMNS)
    o_d = tl.arange(0, DEPTH)
    i_t = (tl.load(pairs_ptr + o_r, mask=m_r, other=0) // TOP_K).to(tl.int64)
    p_x = x_ptr + i_t[:, None] * D + o_d[None, :]
    p_gate = weight_ptr + i_e * (2 * WIDTH * D) + o_c[:, None] * D + o_d[None, :]
    b_gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    b_up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, D, DEPTH):
        m_d = (o_d < D - start)[None, :]
        m_w = (o_c < WIDTH)[:, None] & m_d
        b_x = tl.load(p_x + start, mask=m_r[:, None] & m_d, other=0)
        b_w = tl.load(p_gate + start, mask=m_w, other=0)
        b_gate = tl.dot(b_x, tl.trans(b_w), b_gate, input_precision="tf32x3")
        b_w = tl.load(p_gate + WIDTH * D + start, mask=m_w, other=0)
        b_up = tl.dot(b_x, tl.trans(b_w), b_up, input_precision="tf32x3")
    b_hidden = b_gate * tl.sigmoid(b_gate) * b_up
    p_hidden = hidden_ptr + o_r.to(tl.int64)[:, None] * WIDTH + o_c[None, :]
    tl.store(p_hidden, b_hidden.to(hidden_ptr.dtype.element_ty), mask=m_r[:, None] & (o_c < WIDTH)[None, :])


@kernel
def _down_kernel(
    hidden_ptr,  # [P, WIDTH]
    weight_ptr,  # [E, D, WIDTH]
    weights_ptr,  # [P] float32: of the experts, by pair
    pairs_ptr,  # [P]
    tiles_ptr,  # [tiles, 4]
    parts_ptr,  # [blocks, P, COLUMNS], by pair
    num_pairs: tl.int32,
    num_blocks: tl.int32,
    first_block: tl.int32,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Program: tile of pairs x block of columns of the slab."""
    p_tile = tiles_ptr + tl.program_id(0) // num_blocks * 4
    i_b = tl.program_id(0) % num_blocks
    i_e = tl.load(p_tile).to(tl.int64)
    if i_e < 0:
        return
    o_r = tl.load(p_tile + 1) + tl.arange(0, ROWS)
    m_r = o_r < tl.load(p_tile + 2)
    o_c = (first_block + i_b) * COLUMNS + tl.arange(0, COLUMNS)
    o_d = tl.arange(0, DEPTH)
    p_hidden = hidden_ptr + o_r.to(tl.int64)[:, None] * WIDTH + o_d[None, :]
    p_w = weight_ptr + i_e * (D * WIDTH) + o_c[:, None] * WIDTH + o_d[None, :]
    b_y = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, WIDTH, DEPTH):
        m_d = (o_d < WIDTH - start)[None, :]
        b_h = tl.load(p_hidden + start, mask=m_r[:, None] & m_d, other=0)
        b_w = tl.load(p_w + start, mask=(o_c < D)[:, None] & m_d, other=0)
        b_y = tl.dot(b_h, tl.trans(b_w), b_y, input_precision="tf32x3")
    i_pair = tl.load(pairs_ptr + o_r, mask=m_r, other=0).to(tl.int64)
    b_y *= tl.load(weights_ptr + i_pair, mask=m_r, other=0)[:, None]
    p_part = parts_ptr + (i_b.to(tl.int64) * num_pairs + i_pair)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(p_part, b_y.to(parts_ptr.dtype.element_ty), mask=m_r[:, None])


@kernel
def _sum_kernel(
    parts_ptr,  # [blocks, P, COLUMNS]
    experts_ptr,  # [T, TOP_K]
    y_ptr,  # [T, D]
    num_pairs: tl.int32,
    num_blocks: tl.int32,
    first_block: tl.int32,
    D: tl.constexpr,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program: token x block of columns of the slab."""
    i_t = (tl.program_id(0) // num_blocks).to(tl.int64)
    i_b = tl.program_id(0) % num_blocks
    o_k, o_c = tl.arange(0, BLOCK_K), tl.arange(0, COLUMNS)
    m_k = tl.load(experts_ptr + i_t * TOP_K + o_k, mask=o_k < TOP_K, other=E) < E
    p_part = parts_ptr + (i_b.to(tl.int64) * num_pairs + i_t * TOP_K + o_k)[:, None] * COLUMNS + o_c[None, :]
    b_y = tl.sum(tl.load(p_part, mask=m_k[:, None], other=0).to(tl.float32), axis=0)
    i_c = (first_block + i_b) * COLUMNS + o_c
    tl.store(y_ptr + i_t * D + i_c, b_y.to(y_ptr.dtype.element_ty), mask=i_c < D)


def expert_gate_up(x: Tensor, weight: Tensor, pairs: Tensor, tiles: Tensor, dims: MoeDims, cut: Tiles) -> Tensor:
    """silu(gate) * up of every sorted pair, [P, I].  x: [T, D]; weight: [E, 2 I, D]."""
    hidden = x.new_empty(len(pairs), dims.width)
    _launch_gate_up(
        (len(tiles) * triton.cdiv(dims.width, cut.columns),),
        x,
        weight,
        pairs,
        tiles,
        hidden,
        D=x.shape[1],
        WIDTH=dims.width,
        TOP_K=dims.top_k,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
        DEPTH=cut.depth,
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    return hidden


def expert_down(
    hidden: Tensor,
    weight: Tensor,
    weights: Tensor,
    experts: Tensor,
    pairs: Tensor,
    tiles: Tensor,
    dims: MoeDims,
    cut: Tiles,
) -> Tensor:
    """The weighted sum of each token's experts, [T, D].  hidden: [P, I]; weight: [E, D, I]; the rest [T, k]."""
    T, D, num_pairs = experts.shape[0], weight.shape[1], len(pairs)
    y = hidden.new_empty(T, D)
    columns = cut.down_columns
    blocks = triton.cdiv(D, columns)
    slab = max(1, min(blocks, PARTS_BYTES // max(1, num_pairs * columns * hidden.element_size())))
    parts = hidden.new_empty(slab, num_pairs, columns)
    for first in range(0, blocks, slab):
        count = min(slab, blocks - first)
        _launch_down(
            (len(tiles) * count,),
            hidden,
            weight,
            weights,
            pairs,
            tiles,
            parts,
            num_pairs,
            count,
            first,
            D=D,
            WIDTH=dims.width,
            ROWS=cut.rows,
            COLUMNS=columns,
            DEPTH=cut.depth,
            num_warps=cut.warps,
            num_stages=cut.stages,
        )
        _launch_sum(
            (T * count,),
            parts,
            experts,
            y,
            num_pairs,
            count,
            first,
            D=D,
            E=dims.num_experts,
            TOP_K=dims.top_k,
            COLUMNS=columns,
            BLOCK_K=triton.next_power_of_2(dims.top_k),
        )
    return y


def _warmup(space: LaunchSpace) -> None:
    """No tile has an expert, so the weights of one are enough, where all of them may be most of the memory."""
    if space.moe is None:
        return
    dims, T, D = space.moe, space.num_tokens, space.hidden_size
    experts = torch.full((T, dims.top_k), dims.num_experts, dtype=torch.int32, device=space.device)
    tiles = torch.full((T, 4), -1, dtype=torch.int32, device=space.device)
    weights = torch.empty(T, dims.top_k, dtype=torch.float32, device=space.device)
    pairs = torch.zeros(T * dims.top_k, dtype=torch.int32, device=space.device)
    for dtype in space.activation_dtypes:
        gate_up, down = space.weight(1, 2 * dims.width, D, dtype=dtype), space.weight(1, D, dims.width, dtype=dtype)
        for cut in all_tiles(dtype):
            hidden = expert_gate_up(space.tokens(D, dtype), gate_up, pairs, tiles, dims, cut)
            expert_down(hidden, down, weights, experts, pairs, tiles, dims, cut)


_launch_gate_up = Launcher(_gate_up_kernel, warmup=_warmup)
_launch_down = Launcher(_down_kernel, warmup=_warmup)
_launch_sum = Launcher(_sum_kernel, warmup=_warmup)
