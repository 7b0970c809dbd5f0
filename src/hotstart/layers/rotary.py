"""RotaryTable: cosines and sines of every position, computed once in float32 and shared by all layers.

Rotation by position: Su et al. 2021, arXiv:2104.09864.  YaRN, for contexts longer than trained: Peng et al. 2023,
arXiv:2309.00071.
"""

import math

import torch
from torch import Tensor, nn

from hotstart.config.rope import Rope, Yarn

__all__ = ["RotaryTable"]


class RotaryTable(nn.Module):
    table: Tensor  # [positions, rotary_dim] float32: cos | sin, half of the width each

    def __init__(self, rope: Rope, num_positions: int) -> None:
        super().__init__()
        self.rope = rope
        empty = torch.empty(num_positions, rope.rotary_dim, dtype=torch.float32, device="meta")
        self.register_buffer("table", empty, persistent=False)

    def fill(self) -> None:
        """Compute the table where its memory lies."""
        frequencies, scale = inverse_frequencies(self.rope)
        positions = torch.arange(self.table.shape[0], dtype=torch.float32, device=self.table.device)
        angles = positions[:, None] * frequencies.to(positions.device)
        cos, sin = self.table.chunk(2, dim=1)
        torch.cos(angles, out=cos)
        torch.sin(angles, out=sin)
        if scale != 1.0:
            self.table.mul_(scale)


def inverse_frequencies(rope: Rope) -> tuple[Tensor, float]:
    """Angle per position of each pair of dims [rotary_dim / 2], and the factor of cosines and sines."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.yarn is None:
        return frequencies, 1.0
    return _stretch(frequencies, rope, rope.yarn)


def _stretch(frequencies: Tensor, rope: Rope, yarn: Yarn) -> tuple[Tensor, float]:
    """Pairs that turn often within the trained length stay; those that turn rarely are slowed by `factor`."""

    def pair_of(rotations: float) -> float:
        """The (fractional) pair that turns so many times within the trained length."""
        wavelength = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope.rotary_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = pair_of(yarn.beta_fast), pair_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    pairs = torch.arange(rope.rotary_dim // 2, dtype=torch.float32)
    slowed = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)  # 0: as trained, 1: fully slowed
    scale = yarn.attention_factor
    if scale is None:
        scale = 0.1 * math.log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0
    return frequencies * (1 - slowed) + frequencies / yarn.factor * slowed, scale
