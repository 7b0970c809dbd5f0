"""AddRMSNorm: close a residual branch and normalise for the next one."""

import torch
from torch import Tensor

from hotstart.kernels.ops import Ops
from hotstart.layers.linear import Layer, meta_parameter

__all__ = ["AddRMSNorm"]


class AddRMSNorm(Layer):
    """residual += x; the result is residual / rms(residual) * (1 + weight)."""

    def __init__(self, hidden_size: int, eps: float, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.ops = ops
        self.weight = meta_parameter(hidden_size, dtype=dtype)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # [T, D], [T, D] in place -> [T, D]
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)
