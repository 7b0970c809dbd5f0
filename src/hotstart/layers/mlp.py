"""SwiGLU feed-forward.  Shazeer 2020, arXiv:2002.05202."""

import torch
from torch import Tensor

from hotstart.kernels.ops import Ops
from hotstart.kernels.step import Step
from hotstart.layers.fused import Fused, by_rows
from hotstart.layers.linear import Layer, Linear
from hotstart.layers.norm import RMSNorm

__all__ = ["MLP"]


class MLP(Layer):
    def __init__(self, hidden_size: int, intermediate_size: int, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.ops = ops
        self.widths = {"gate_proj.weight": intermediate_size, "up_proj.weight": intermediate_size}
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, ops, dtype)
        self.down_proj = Linear(intermediate_size, hidden_size, ops, dtype)

    def fused(self) -> list[Fused]:
        return [Fused(self.gate_up_proj.weight, (by_rows(self.gate_up_proj.weight, self.widths),))]

    def forward(self, residual: Tensor, norm: RMSNorm, step: Step) -> Tensor:  # [T, D], in place
        hidden = self.ops.norm_swiglu(residual, norm.weight, norm.eps, self.gate_up_proj.weight)
        return self.down_proj.add_to(residual, hidden)

    def of_normed(self, x: Tensor) -> Tensor:  # [T, D] -> [T, D]
        return self.down_proj(self.ops.silu_mul(self.gate_up_proj(x)))
