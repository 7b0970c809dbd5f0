"""RMS norm, zero-centred: y = x / rms(x) * (1 + w) in float32, alone or after a residual add.

Source: Zhang & Sennrich 2019, arXiv:1910.07467; the 1 + w form is Qwen3-Next's.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_rms_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [T, D]; weight: [D]."""
    return F.rms_norm(x.float(), weight.shape, weight.float() + 1, eps).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise x + residual; `residual` becomes the sum, in place.  x, residual: [T, D]; weight: [D]."""
    return rms_norm(residual.add_(x), weight, eps)
