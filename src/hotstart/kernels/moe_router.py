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

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel
from hotstart.kernels.norm import rms_norm

__all__ = ["norm_router"]

_MOST_TOKENS = 2  # each has programs of its own


@kernel
def _router_kernel(
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


def norm_router(residual: Tensor, norm: Tensor, eps: float, router: Tensor) -> tuple[Tensor, Tensor]:
    """rms_norm(residual) [T, D], and its logits [T, logit_width].  norm: [D]; router: [logit_width, D]."""
    (T, D), width = residual.shape, router.shape[0]
    if T > _MOST_TOKENS:
        x = rms_norm(residual, norm, eps)
        return x, F.linear(x, router)
    launch, blocks = _of_token(D, width)
    x, logits = residual.new_empty(T, D), residual.new_empty(T, width)
    launch((T * blocks,), residual, norm, router, x, logits, eps)
    return x, logits


@functools.cache
def _of_token(D: int, width: int) -> tuple[BoundLaunch, int]:
    """And the programs of a token."""
    block_d, columns = int(triton.next_power_of_2(D)), 2
    launch = _launch.bind(
        D=D,
        ROW=width,
        COLUMNS=columns,
        BLOCK_D=block_d,
        num_warps=min(8, max(1, block_d // 512)),
    )
    return launch, triton.cdiv(width, columns)


def _warmup(space: LaunchSpace) -> None:
    if space.moe is None:
        return
    D = space.hidden_size
    for dtype in space.activation_dtypes:
        norm, router = space.empty(D, dtype=dtype), space.empty(space.moe.logit_width, D, dtype=dtype)
        norm_router(space.empty(_MOST_TOKENS, D, dtype=dtype), norm, space.eps, router)


_launch = Launcher(_router_kernel, warmup=_warmup)
