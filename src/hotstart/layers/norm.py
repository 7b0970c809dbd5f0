"""RMSNorm: what stands before a mixer and before a feed-forward."""

import torch
from torch import Tensor

from hotstart.kernels.ops import Ops
from hotstart.layers.linear import Layer, meta_parameter

__all__ = ["RMSNorm"]


class RMSNorm(Layer):
    """x / rms(x) * (1 + weight)."""

    def __init__(self, hidden_size: int, eps: float, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.ops = ops
        self.weight = meta_parameter(hidden_size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:  # [T, D] -> [T, D]
        return self.ops.rms_norm(x, self.weight, self.eps)
