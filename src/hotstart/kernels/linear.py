"""Products with weights on a CPU: x @ weight^T, alone and with what stands before or after it in a layer.

PyTorch gives float32 products to MKL, which reaches 90 GFLOP/s on one core of an AMD EPYC with AVX-512, where oneDNN
reaches 200.  A call of oneDNN costs more, so small products stay with MKL.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hotstart.kernels.activation import silu_mul_torch
from hotstart.kernels.norm import rms_norm_torch

__all__ = ["Product", "add_linear_torch", "linear_torch", "norm_linear_torch", "norm_swiglu_torch"]

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
SMALL_PRODUCT = 3_000_000  # multiplications
SLAB_WEIGHTS = 16 << 20  # oneDNN may bring the weights into another order first: so many at once


def linear_torch(x: Tensor, weight: Tensor) -> Tensor:
    """x: [T, K], weight: [N, K] -> [T, N]."""
    if not _is_large(x, weight):
        return F.linear(x, weight)
    if weight.numel() <= SLAB_WEIGHTS:
        return _onednn(x, weight)
    N, K = weight.shape
    y = x.new_empty(x.shape[0], N)
    rows = max(1, SLAB_WEIGHTS // K)
    for first in range(0, N, rows):
        y[:, first : first + rows] = _onednn(x, weight[first : first + rows])
    return y


def _is_large(x: Tensor, weight: Tensor) -> bool:
    return _HAS_ONEDNN and x.dtype == torch.float32 and x.shape[0] * weight.numel() >= SMALL_PRODUCT


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


Product = Callable[[Tensor, Tensor], Tensor]


def norm_linear_torch(x: Tensor, norm: Tensor, eps: float, weight: Tensor, product: Product = linear_torch) -> Tensor:
    """x: [T, K], norm: [K], weight: [N, K] -> [T, N]."""
    return product(rms_norm_torch(x, norm, eps), weight)


def norm_swiglu_torch(x: Tensor, norm: Tensor, eps: float, weight: Tensor, product: Product = linear_torch) -> Tensor:
    """x: [T, K], norm: [K], weight: gate | up [2 N, K] -> [T, N]."""
    return silu_mul_torch(norm_linear_torch(x, norm, eps, weight, product))


def add_linear_torch(residual: Tensor, x: Tensor, weight: Tensor, product: Product = linear_torch) -> Tensor:
    """residual: [T, N], in place, x: [T, K], weight: [N, K]."""
    if product is linear_torch and not _is_large(x, weight):
        return residual.addmm_(x, weight.t())
    return residual.add_(product(x, weight))
