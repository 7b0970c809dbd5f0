"""RMS norm in fp32: y = x / rms(x) * (1 + w)

rms(x) = sqrt(mean(x^2) + eps).  Source: Zhang & Sennrich 2019, arXiv:1910.07467; the 1 + w form is Qwen3-Next's.
"""

from functools import cache, lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel

__all__ = [
    "in_dtype",
    "norm_scale",
    "rms_norm",
    "rms_norm_torch",
    "row_length",
    "scalar",
]


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A conversion to the same dtype is a call, too."""
    return x if x.dtype is dtype else x.to(dtype)


def row_length(x: Tensor, eps: float) -> Tensor:
    """sqrt(sum(x^2) + eps) over the last dimension, which stays: [..., D] -> [..., 1].

    Two calls where torch's own RMS norm is seven on the CPU, and at one token it is calls that cost.
    """
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), scalar(eps**0.5))


@lru_cache(maxsize=1024)
def norm_scale(weight: Tensor) -> Tensor:
    """sqrt(D) (1 + weight), float32: what a row is multiplied by once it is divided by its length.  A weight stays."""
    D = weight.shape[0]
    return torch.add(scalar(D**0.5), weight.float(), alpha=D**0.5)


@lru_cache(maxsize=64)
def scalar(value: float) -> Tensor:
    """A constant where torch takes tensors alone; without dimensions it goes with tensors of any device."""
    return torch.tensor(value)


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [T, D], weight: [D] -> [T, D]."""
    wide = x.float()
    return in_dtype((wide / row_length(wide, eps * x.shape[-1])).mul_(norm_scale(weight)), x.dtype)


@kernel
def _rms_norm_kernel(x_ptr, weight_ptr, y_ptr, eps: tl.float32, D: tl.constexpr, BLOCK_D: tl.constexpr):
    i_t = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_x = tl.load(x_ptr + i_t * D + o_d, mask=m_d, other=0).to(tl.float32)
    b_w = tl.load(weight_ptr + o_d, mask=m_d, other=0).to(tl.float32)
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, axis=0) / D + eps) * (1 + b_w)
    tl.store(y_ptr + i_t * D + o_d, b_y.to(y_ptr.dtype.element_ty), mask=m_d)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [T, D], weight: [D] -> [T, D]."""
    T, D = x.shape
    y = x.new_empty(T, D)  # empty_like on meta tensors imports all of sympy: a second of the start
    _bound(D)((T,), x, weight, y, eps)
    return y


@cache
def _bound(D: int) -> BoundLaunch:
    block_d = int(triton.next_power_of_2(D))
    num_warps = min(16, max(1, block_d // 512))  # eight values for each thread and load, within what one row can use
    return _launch.bind(D=D, BLOCK_D=block_d, num_warps=num_warps)


def _warmup(space: LaunchSpace) -> None:
    for dtype in space.activation_dtypes:
        weight = space.empty(space.hidden_size, dtype=dtype)
        rms_norm(space.tokens(space.hidden_size, dtype), weight, space.eps)


_launch = Launcher(_rms_norm_kernel, warmup=_warmup)
