"""MLP: the SwiGLU feed-forward.  Shazeer 2020, arXiv:2002.05202."""

import torch
from torch import Tensor

from hotstart.kernels.ops import Ops, Step
from hotstart.layers.fused import Fused, by_rows
from hotstart.layers.linear import Layer, Linear

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

    def forward(self, x: Tensor, step: Step) -> Tensor:  # [T, D] -> [T, D]
        return self.down_proj(self.ops.silu_mul(self.gate_up_proj(x)))
