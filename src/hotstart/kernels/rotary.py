"""Rotary embedding of the first `rotary_dim` values of a head, by halves: (x1, x2) -> (x1 c - x2 s, x2 c + x1 s).

Source: Su et al. 2021, arXiv:2104.09864; YaRN: Peng et al. 2023, arXiv:2309.00071.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Yarn", "apply_rotary", "rope_table"]


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN's stretch of the context by `factor`; `attention_factor` None takes the paper's 0.1 ln(factor) + 1."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


def rope_table(num_positions: int, rotary_dim: int, theta: float, yarn: Yarn | None, device: torch.device) -> Tensor:
    """cos | sin of every position, [num_positions, rotary_dim] float32."""
    # The angles are float32 products of a float32 frequency: at large positions the rounding is part of the model.
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim
    frequencies = 1.0 / theta**exponents
    scale = 1.0
    if yarn is not None:
        frequencies = _yarn_frequencies(frequencies, rotary_dim, theta, yarn)
        scale = yarn.attention_factor or (0.1 * math.log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0)
    angles = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).mul_(scale)


def _yarn_frequencies(frequencies: Tensor, rotary_dim: int, theta: float, yarn: Yarn) -> Tensor:
    """Keep the fast frequencies, divide the slow ones by the factor, and blend linearly in between."""

    def dimension(rotations: float) -> float:  # the pair that turns so often over the original context
        return rotary_dim * math.log(yarn.original_max_positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    pairs = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
    slow = ((pairs - low) / max(high - low, 1e-3)).clamp_(0, 1)
    return frequencies * (1 - slow) + frequencies / yarn.factor * slow


def apply_rotary(x: Tensor, table: Tensor) -> None:
    """Rotate in place.  x: [T, H, D] float32; table: cos | sin of each token [T, rotary_dim]."""
    half = table.shape[-1] // 2
    cos, sin = table.unsqueeze(1).split_with_sizes((half, half), dim=2)
    first, second, _ = x.split_with_sizes((half, half, x.shape[2] - 2 * half), dim=2)
    turned = second * cos
    turned.addcmul_(first, sin)
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.copy_(turned)
