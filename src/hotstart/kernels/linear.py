"""Linear: x @ weight^T on a CPU.

PyTorch gives float32 products to MKL, which reaches 90 GFLOP/s on one core of an AMD EPYC with AVX-512, where oneDNN
reaches 200.  A call of oneDNN costs more, so small products stay with MKL.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["linear_torch"]

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
SMALL_PRODUCT = 3_000_000  # multiplications
SLAB_WEIGHTS = 16 << 20  # oneDNN may bring the weights into another order first: so many at once


def linear_torch(x: Tensor, weight: Tensor) -> Tensor:
    """x: [T, K], weight: [N, K] -> [T, N]."""
    if not _HAS_ONEDNN or x.dtype != torch.float32 or x.shape[0] * weight.numel() < SMALL_PRODUCT:
        return F.linear(x, weight)
    if weight.numel() <= SLAB_WEIGHTS:
        return _onednn(x, weight)
    N, K = weight.shape
    y = x.new_empty(x.shape[0], N)
    rows = max(1, SLAB_WEIGHTS // K)
    for first in range(0, N, rows):
        y[:, first : first + rows] = _onednn(x, weight[first : first + rows])
    return y


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y
