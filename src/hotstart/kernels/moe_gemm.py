"""Products of tokens with their experts' matrices, tile by tile of the sorted pairs (moe_route.py).

    hidden = silu(x gate^T) * (x up^T);  part = hidden down^T;  r + sum of p * part over a token's experts, in order

Where an expert has few rows, tiles are swapped: columns of weights stand where the tensor cores want 64 rows, tokens
where 8 are enough.  Every element of every product is summed in one order, whatever tile it stands in, so neither a
neighbour nor the number of tokens changes a bit of it.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import Launcher, kernel
from hotstart.kernels.moe_route import num_tiles
from hotstart.kernels.moe_tiles import Cut, Tiles, warmup
from hotstart.kernels.ops import MoeDims
from hotstart.kernels.series import Call, Own, Part

__all__ = ["products"]

PARTS_BYTES = 128 << 20  # of parts at once: more columns go one slab after the other
_SUM_BLOCK = 1024  # columns


@triton.jit
def _product(
    p_a, p_w, o_d, m_a, m_w,
    DEPTH_OF: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SWAPPED: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Rows at p_a times columns at p_w: [ROWS, COLUMNS], or swapped."""
    if SWAPPED:
        b_y = tl.zeros([COLUMNS, ROWS], tl.float32)
    else:
        b_y = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, DEPTH_OF, DEPTH):
        if EXACT:
            b_w = tl.load(p_w + start)
            b_a = tl.load(p_a + start, mask=m_a, other=0)
        else:
            m_d = (o_d < DEPTH_OF - start)[None, :]
            b_w = tl.load(p_w + start, mask=m_w & m_d, other=0)
            b_a = tl.load(p_a + start, mask=m_a & m_d, other=0)
        if SWAPPED:
            b_y = tl.dot(b_w, tl.trans(b_a), b_y, input_precision="tf32x3")
        else:
            b_y = tl.dot(b_a, tl.trans(b_w), b_y, input_precision="tf32x3")
    return b_y


@kernel
def _gate_up_kernel(
    x_ptr,  # [T, D]
    weight_ptr,  # [experts, 2 * WIDTH, D]: gate | up
    pairs_ptr,  # [P]
    tiles_ptr,  # [*, 4]
    hidden_ptr,  # [P, WIDTH]
    last_tile: tl.int32,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SWAPPED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: tile of pairs x block of columns, of gate and as many of up.

    Gate and up of a column are in one thread, as the tensor cores leave sums: beside each other, or 8 rows apart.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    NUM_BLOCKS: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    EXACT: tl.constexpr = D % DEPTH == 0 and WIDTH % COLUMNS == 0
    i_tile, i_b = tl.program_id(0) // NUM_BLOCKS, tl.program_id(0) % NUM_BLOCKS
    p_tile = tiles_ptr + i_tile * 4
    i_e, first, end = tl.load(p_tile).to(tl.int64), tl.load(p_tile + 1), tl.load(p_tile + 2)
    if i_tile >= tl.load(tiles_ptr + last_tile * 4):
        return
    o_r = first + tl.arange(0, ROWS)
    m_r = o_r < end
    i_pair = tl.load(pairs_ptr + o_r, mask=m_r, other=0)
    o_d, o_n = tl.arange(0, DEPTH), tl.arange(0, 2 * COLUMNS)
    if SWAPPED:
        is_up, o_c = o_n % 16 // 8, i_b * COLUMNS + o_n // 16 * 8 + o_n % 8
    else:
        is_up, o_c = o_n % 2, i_b * COLUMNS + o_n // 2
    p_x = x_ptr + (i_pair // PER_TOKEN).to(tl.int64)[:, None] * D + o_d[None, :]
    p_w = weight_ptr + i_e * (2 * WIDTH * D) + (is_up * WIDTH + o_c)[:, None] * D + o_d[None, :]
    b_y = _product(p_x, p_w, o_d, m_r[:, None], (o_c < WIDTH)[:, None], D, ROWS, 2 * COLUMNS, DEPTH, SWAPPED, EXACT)
    o_c = i_b * COLUMNS + tl.arange(0, COLUMNS)
    p_row = hidden_ptr + i_pair.to(tl.int64) * WIDTH
    m_c = o_c < WIDTH
    if SWAPPED:
        b_gate, b_up = tl.split(tl.permute(tl.reshape(b_y, [COLUMNS // 8, 2, 8, ROWS]), [0, 2, 3, 1]))
        b_hidden = tl.reshape(b_gate * tl.sigmoid(b_gate) * b_up, [COLUMNS, ROWS])
        p_hidden = p_row[None, :] + o_c[:, None]
        tl.store(p_hidden, b_hidden.to(hidden_ptr.dtype.element_ty), mask=m_r[None, :] & m_c[:, None])
    else:
        b_gate, b_up = tl.split(tl.reshape(b_y, [ROWS, COLUMNS, 2]))
        b_hidden = b_gate * tl.sigmoid(b_gate) * b_up
        p_hidden = p_row[:, None] + o_c[None, :]
        tl.store(p_hidden, b_hidden.to(hidden_ptr.dtype.element_ty), mask=m_r[:, None] & m_c[None, :])


@kernel
def _down_kernel(
    hidden_ptr,  # [P, WIDTH]
    weight_ptr,  # [experts, D, WIDTH]
    pairs_ptr,  # [P]
    tiles_ptr,  # [*, 4]
    parts_ptr,  # [P, num_blocks * COLUMNS]
    last_tile: tl.int32,
    num_blocks: tl.int32,
    first_block: tl.int32,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SWAPPED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: tile of pairs x block of columns of the slab.

    Which tiles there are, the launches before the last have told.
    """
    EXACT: tl.constexpr = WIDTH % DEPTH == 0 and D % COLUMNS == 0
    i_tile, i_b = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    p_tile = tiles_ptr + i_tile * 4
    i_e, first, end = tl.load(p_tile).to(tl.int64), tl.load(p_tile + 1), tl.load(p_tile + 2)
    is_one = i_tile < tl.load(tiles_ptr + last_tile * 4)
    o_r = first + tl.arange(0, ROWS)
    m_r = is_one & (o_r < end)
    i_pair = tl.load(pairs_ptr + o_r, mask=m_r, other=0).to(tl.int64)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    if is_one == 0:
        return
    o_d, o_n = tl.arange(0, DEPTH), tl.arange(0, COLUMNS)
    o_c = (first_block + i_b) * COLUMNS + o_n
    p_hidden = hidden_ptr + i_pair[:, None] * WIDTH + o_d[None, :]
    p_w = weight_ptr + i_e * (D * WIDTH) + o_c[:, None] * WIDTH + o_d[None, :]
    b_y = _product(p_hidden, p_w, o_d, m_r[:, None], (o_c < D)[:, None], WIDTH, ROWS, COLUMNS, DEPTH, SWAPPED, EXACT)
    p_row = parts_ptr + (i_pair * num_blocks + i_b) * COLUMNS
    if SWAPPED:
        tl.store(p_row[None, :] + o_n[:, None], b_y.to(parts_ptr.dtype.element_ty), mask=m_r[None, :])
    else:
        tl.store(p_row[:, None] + o_n[None, :], b_y.to(parts_ptr.dtype.element_ty), mask=m_r[:, None])


@kernel
def _sum_kernel(
    parts_ptr,  # [T, PER_TOKEN, num_columns * COLUMNS]
    weights_ptr,  # [T, PER_TOKEN] float32
    kv_index_ptr,  # [T]
    residual_ptr,  # [T, D]: added to
    num_columns: tl.int32,
    first_column: tl.int32,
    D: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: token x block of the slab's columns, which stand in blocks of COLUMNS, from `first_column` on."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    width, first = num_columns * COLUMNS, first_column * COLUMNS  # and so vectors can be read
    num_blocks = (width + BLOCK - 1) // BLOCK
    i_t = (tl.program_id(0) // num_blocks).to(tl.int64)
    o_c = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    m_c = (o_c < width) & (first + o_c < D)
    if tl.load(kv_index_ptr + i_t) < 0:
        return
    p_residual = residual_ptr + i_t * D + first + o_c
    b_y = tl.load(p_residual, mask=m_c, other=0).to(tl.float32)
    b_parts = ()
    for s in tl.static_range(PER_TOKEN):
        b_part = tl.load(parts_ptr + (i_t * PER_TOKEN + s) * width + o_c, mask=m_c, other=0)
        b_parts += (b_part,)
    # Else the assembler asks for one after the other, to save registers.
    tl.debug_barrier()
    for s in tl.static_range(PER_TOKEN):
        b_y += tl.load(weights_ptr + i_t * PER_TOKEN + s) * b_parts[s].to(tl.float32)
    tl.store(p_residual, b_y.to(residual_ptr.dtype.element_ty), mask=m_c)


def products(T: int, D: int, dims: MoeDims, dtype: torch.dtype, cut: Tiles) -> Part:
    """From x [T, D], and what `routing` leaves, to the residual [T, D], in place.

    gate_up: [experts, 2 I, D]; down: [experts, D, I].
    """
    P, columns = T * dims.experts_per_token, cut.down.columns
    last_tile = num_tiles(P, dims.stacked_experts, cut.rows)
    tiles = {"D": D, "WIDTH": dims.width, "ROWS": cut.rows, "SWAPPED": cut.swapped}
    gate_up = _launch_gate_up.bind(PER_TOKEN=dims.experts_per_token, **_options(cut.gate_up), **tiles)
    down = _launch_down.bind(**_options(cut.down), **tiles)
    block = min(_SUM_BLOCK, int(triton.next_power_of_2(D)))
    add = _launch_sum.bind(
        D=D, PER_TOKEN=dims.experts_per_token, COLUMNS=columns, BLOCK=block, num_warps=max(1, block // 256)
    )
    blocks = triton.cdiv(D, columns)
    slab = max(1, min(blocks, PARTS_BYTES // max(1, P * columns * dtype.itemsize)))
    own = {"hidden": Own(dtype, P * dims.width), "parts": Own(dtype, P * slab * columns)}
    grid = (last_tile * triton.cdiv(dims.width, cut.gate_up.columns),)
    calls = [Call(gate_up, "x gate_up pairs tiles hidden", grid, (last_tile,))]
    for first in range(0, blocks, slab):
        count = min(slab, blocks - first)
        part = (last_tile, count, first)
        calls.append(Call(down, "hidden down pairs tiles parts", (last_tile * count,), part))
        sums = (T * triton.cdiv(count * columns, block),)
        calls.append(Call(add, "parts weights kv_index residual", sums, (count, first)))
    return calls, own


def _options(cut: Cut) -> dict[str, int]:
    return {"COLUMNS": cut.columns, "DEPTH": cut.depth, "num_warps": cut.warps, "num_stages": cut.stages}


_launch_gate_up = Launcher(_gate_up_kernel, warmup=warmup)
_launch_down = Launcher(_down_kernel, warmup=warmup)
_launch_sum = Launcher(_sum_kernel, warmup=warmup, in_place=True)
