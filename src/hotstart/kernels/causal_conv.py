"""Causal depthwise convolution with SiLU: y_t = silu(sum_j w_j x_(t - W + 1 + j)).

Its state is the last W raw inputs of a sequence, a ring: the one at position p lies in row p % W, and zeros where there
was none yet.  A step reads the W - 1 inputs before its first, and writes where none of these lies: who writes need not
wait for others who read.

Source: the short convolution of Mamba, Gu & Dao 2023, arXiv:2312.00752.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["causal_conv", "causal_conv_reference", "causal_conv_step", "ring_rows"]


def causal_conv_reference(x: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence, token by token.  x: [T, C]; weight: [C, W]; state: [W, C], oldest first -> y [T, C], new state."""
    window, rows = state, []
    for token in x:
        window = torch.cat([window[1:], token[None]])  # [W, C]
        rows.append(F.silu((window * weight.T).sum(0)))
    return torch.stack(rows) if rows else x.clone(), window


def causal_conv(window: Tensor, taps: Tensor) -> Tensor:
    """window: [..., W - 1 + T, C], tokens after their state; taps: [W, C] float32 -> y [..., T, C] float32."""
    width = taps.shape[0]
    T = window.shape[-2] - width + 1
    window = window.float()
    y = window.narrow(-2, 0, T) * taps[0]
    for j in range(1, width):
        y.addcmul_(window.narrow(-2, j, T), taps[j])
    return F.silu(y, inplace=True)


def causal_conv_step(x: Tensor, taps: Tensor, rings: Tensor, rows: Tensor) -> Tensor:
    """One token of N sequences, written into its ring.

    x: [N, C]; taps: [W, C]; rings: [slots * W, C]; rows: [N * W], of the windows, x last -> y [N, C] float32.
    """
    N, W = x.shape[0], taps.shape[0]
    rings.index_copy_(0, rows[W - 1 :: W], x)
    window = rings.index_select(0, rows).view(N, W, -1)
    return F.silu(window.float().mul_(taps).sum(1), inplace=True)


# The same for all layers of a step.
@lru_cache(maxsize=8)
def ring_rows(slots: tuple[int, ...], ends: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """Where [slots * W, C] holds the inputs of each sequence before `end`, oldest first: [N * W] int64."""
    rows = [slot * width + (end + j) % width for slot, end in zip(slots, ends, strict=True) for j in range(width)]
    return torch.tensor(rows, dtype=torch.int64, device=device)
