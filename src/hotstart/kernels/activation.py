"""Gated activations of packed projections: silu(gate) * up, and x * sigmoid(gate).

Source: SwiGLU, Shazeer 2020, arXiv:2002.05202.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["sigmoid_mul", "silu_mul"]


def silu_mul(x: Tensor) -> Tensor:
    """x: gate | up [T, 2 I] -> [T, I]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate.float()).mul_(up).to(x.dtype)


def sigmoid_mul(x: Tensor, gate: Tensor) -> Tensor:
    """x * sigmoid(gate), both [T, N]."""
    return gate.float().sigmoid().mul_(x).to(x.dtype)
