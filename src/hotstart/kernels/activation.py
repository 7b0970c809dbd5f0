"""Gated activations of packed projections: silu(gate) * up, and x * sigmoid(gate), in float32.

Source: SwiGLU, Shazeer 2020, arXiv:2002.05202.
"""

from functools import cache

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel
from hotstart.kernels.norm import in_dtype

__all__ = ["sigmoid_mul_torch", "silu_mul", "silu_mul_torch"]

_BLOCK = 1024


def silu_mul_torch(x: Tensor) -> Tensor:
    """x: gate | up [T, 2 I] -> [T, I]."""
    gate, up = x.split_with_sizes((x.shape[1] // 2,) * 2, dim=1)
    return in_dtype(F.silu(gate.float()).mul_(up), x.dtype)


def sigmoid_mul_torch(x: Tensor, gate: Tensor) -> Tensor:
    """x * sigmoid(gate), of one shape.  On a GPU attention does this itself."""
    return in_dtype(gate.float().sigmoid().mul_(x), x.dtype)


@kernel
def _silu_mul_kernel(x_ptr, y_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # [T, 2 WIDTH] [T, WIDTH]
    num_blocks: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    i_t = (tl.program_id(0) // num_blocks).to(tl.int64)
    o_i = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < WIDTH
    b_gate = tl.load(x_ptr + i_t * 2 * WIDTH + o_i, mask=m_i, other=0).to(tl.float32)
    b_up = tl.load(x_ptr + i_t * 2 * WIDTH + WIDTH + o_i, mask=m_i, other=0).to(tl.float32)
    b_y = b_gate * tl.sigmoid(b_gate) * b_up
    tl.store(y_ptr + i_t * WIDTH + o_i, b_y.to(y_ptr.dtype.element_ty), mask=m_i)


def silu_mul(x: Tensor) -> Tensor:
    """x: gate | up [T, 2 I] -> [T, I]."""
    T, width = x.shape[0], x.shape[1] // 2
    y = x.new_empty(T, width)
    launch, num_blocks = _bound(width)
    launch((T * num_blocks,), x, y)
    return y


@cache
def _bound(width: int) -> tuple[BoundLaunch, int]:
    """And the programs of a row."""
    block = min(_BLOCK, int(triton.next_power_of_2(width)))
    launch = _launch.bind(WIDTH=width, BLOCK=block)
    return launch, -(-width // block)


def _warmup(space: LaunchSpace) -> None:
    for dtype in space.activation_dtypes:
        for width in {*space.mlp_widths, *space.shared_widths}:
            silu_mul(space.tokens(2 * width, dtype))


_launch = Launcher(_silu_mul_kernel, warmup=_warmup)
