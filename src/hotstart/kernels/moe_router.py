"""What stands before the experts: the norm of the residual, and the logits of that norm, in one launch for few tokens.

    x = r / rms(r) * (1 + w);  logits = x router^T

A program that makes logits norms its tokens anew, which is cheaper than to wait for another.  More tokens have a norm
of their own, and a product of cuBLAS.
"""

import functools

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel, launches_overlap
from hotstart.kernels.norm import rms_norm

__all__ = ["norm_router"]

_ONE_BY_ONE = 2  # tokens, each with programs of its own
_MOST_TOKENS = 64
_TILE = 16  # tokens, and logits


@kernel
def _router_of_token_kernel(
    residual_ptr,  # [T, D]
    norm_ptr,  # [D]
    router_ptr,  # [ROW, D]
    x_ptr,  # [T, D]: out
    logits_ptr,  # [T, ROW]: out
    eps: tl.float32,
    D: tl.constexpr,
    ROW: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: token x block of logits.  Each norms its token anew, which is cheaper than to wait for another."""
    EXACT: tl.constexpr = D == BLOCK_D and ROW % COLUMNS == 0
    NUM_BLOCKS: tl.constexpr = (ROW + COLUMNS - 1) // COLUMNS
    i_t, i_b = tl.program_id(0) // NUM_BLOCKS, tl.program_id(0) % NUM_BLOCKS
    o_d, o_c = tl.arange(0, BLOCK_D), i_b * COLUMNS + tl.arange(0, COLUMNS)
    m_d = (o_d < D) | EXACT
    b_w = tl.load(router_ptr + o_c[:, None] * D + o_d[None, :], mask=((o_c < ROW)[:, None] & m_d) | EXACT, other=0)
    b_norm = tl.load(norm_ptr + o_d, mask=m_d, other=0).to(tl.float32)
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    b_r = tl.load(residual_ptr + i_t * D + o_d, mask=m_d, other=0).to(tl.float32)
    b_x = b_r * tl.rsqrt(tl.sum(b_r * b_r, axis=0) / D + eps) * (1 + b_norm)
    b_x = b_x.to(x_ptr.dtype.element_ty)
    if i_b == 0:
        tl.store(x_ptr + i_t * D + o_d, b_x, mask=m_d)
    b_y = tl.sum(b_w.to(tl.float32) * b_x.to(tl.float32)[None, :], axis=1)
    tl.store(logits_ptr + i_t * ROW + o_c, b_y.to(logits_ptr.dtype.element_ty), mask=o_c < ROW)


@kernel
def _router_of_tile_kernel(
    residual_ptr,  # [T, D]
    norm_ptr,  # [D]
    router_ptr,  # [ROW, D]
    x_ptr,  # [T, D]: out
    logits_ptr,  # [T, ROW]: out
    T: tl.int32,
    eps: tl.float32,
    D: tl.constexpr,
    ROW: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: tile of tokens x tile of logits.  Lengths are known after the product; x is shared among the latter."""
    NUM_BLOCKS: tl.constexpr = (ROW + TILE - 1) // TILE
    EXACT: tl.constexpr = D % DEPTH == 0
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    i_b = tl.program_id(0) % NUM_BLOCKS
    o_t = tl.program_id(0) // NUM_BLOCKS * TILE + tl.arange(0, TILE)
    o_c, o_d = i_b * TILE + tl.arange(0, TILE), tl.arange(0, DEPTH)
    m_t = (o_t < T)[:, None]
    p_r, p_w = residual_ptr + o_t[:, None] * D + o_d[None, :], router_ptr + o_c[:, None] * D + o_d[None, :]
    b_y = tl.zeros([TILE, TILE], tl.float32)
    b_squares = tl.zeros([TILE, DEPTH], tl.float32)
    for start in range(0, D, DEPTH):
        m_d = (o_d < D - start) | EXACT
        b_w = tl.load(p_w + start, mask=(o_c < ROW)[:, None] & m_d[None, :], other=0)
        b_r = tl.load(p_r + start, mask=m_t & m_d[None, :], other=0).to(tl.float32)
        b_x = b_r * (1 + tl.load(norm_ptr + start + o_d, mask=m_d, other=0).to(tl.float32))[None, :]
        b_squares += b_r * b_r
        b_y = tl.dot(b_x.to(b_w.dtype), tl.trans(b_w), b_y, input_precision="tf32x3")
    b_scale = tl.rsqrt(tl.sum(b_squares, axis=1) / D + eps)[:, None]
    p_y = logits_ptr + o_t[:, None] * ROW + o_c[None, :]
    tl.store(p_y, (b_y * b_scale).to(logits_ptr.dtype.element_ty), mask=m_t & (o_c < ROW)[None, :])
    for start in range(i_b * DEPTH, D, NUM_BLOCKS * DEPTH):
        m_d = (o_d < D - start) | EXACT
        b_r = tl.load(p_r + start, mask=m_t & m_d[None, :], other=0).to(tl.float32)
        b_x = b_r * b_scale * (1 + tl.load(norm_ptr + start + o_d, mask=m_d, other=0).to(tl.float32))[None, :]
        p_x = x_ptr + o_t[:, None] * D + start + o_d[None, :]
        tl.store(p_x, b_x.to(x_ptr.dtype.element_ty), mask=m_t & m_d[None, :])


def norm_router(residual: Tensor, norm: Tensor, eps: float, router: Tensor) -> tuple[Tensor, Tensor]:
    """rms_norm(residual) [T, D], and its logits [T, logit_width].  norm: [D]; router: [logit_width, D]."""
    (T, D), width = residual.shape, router.shape[0]
    if T > _MOST_TOKENS:
        x = rms_norm(residual, norm, eps)
        return x, F.linear(x, router)
    x, logits = residual.new_empty(T, D), residual.new_empty(T, width)
    if T <= _ONE_BY_ONE:
        launch, blocks = _of_token(D, width, launches_overlap())
        launch((T * blocks,), residual, norm, router, x, logits, eps)
    else:
        launch, blocks = _of_tile(D, width, launches_overlap())
        launch((triton.cdiv(T, _TILE) * blocks,), residual, norm, router, x, logits, T, eps)
    return x, logits


@functools.cache
def _of_token(D: int, width: int, overlap: bool) -> tuple[BoundLaunch, int]:
    """And the programs of a token."""
    block_d, columns = int(triton.next_power_of_2(D)), 2
    launch = _launch_token.bind(
        D=D,
        ROW=width,
        COLUMNS=columns,
        BLOCK_D=block_d,
        OVERLAP=overlap,
        launch_pdl=overlap,
        num_warps=min(8, max(1, block_d // 512)),
    )
    return launch, triton.cdiv(width, columns)


@functools.cache
def _of_tile(D: int, width: int, overlap: bool) -> tuple[BoundLaunch, int]:
    """And the programs of a tile of tokens."""
    depth = max(16, min(256, int(triton.next_power_of_2(D))))
    launch = _launch_tile.bind(
        D=D, ROW=width, TILE=_TILE, DEPTH=depth, OVERLAP=overlap, launch_pdl=overlap, num_stages=3
    )
    return launch, triton.cdiv(width, _TILE)


def _warmup(space: LaunchSpace) -> None:
    if space.moe is None:
        return
    D = space.hidden_size
    for dtype in space.activation_dtypes:
        norm, router = space.weight(D, dtype=dtype), space.weight(space.moe.logit_width, D, dtype=dtype)
        for num_tokens in (_ONE_BY_ONE, _ONE_BY_ONE + 1):
            norm_router(space.empty(num_tokens, D, dtype=dtype), norm, space.eps, router)


_launch_token = Launcher(_router_of_token_kernel, warmup=_warmup)
_launch_tile = Launcher(_router_of_tile_kernel, warmup=_warmup)
