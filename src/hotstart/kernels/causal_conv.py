"""Causal depthwise convolution with SiLU: y_t = silu(sum_j w_j x_(t - W + 1 + j)); the state is the last W - 1 raw x.

Source: the short convolution of Mamba, Gu & Dao 2023, arXiv:2312.00752.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["causal_conv", "causal_conv_reference", "causal_conv_step"]


def causal_conv_reference(x: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence, token by token.  x: [T, C]; weight: [C, W]; state: [W - 1, C] -> y [T, C], the new state."""
    window, rows = state, []
    for token in x:
        window = torch.cat([window, token[None]])  # [W, C]
        rows.append(F.silu((window * weight.T).sum(0)))
        window = window[1:]
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


def causal_conv_step(x: Tensor, taps: Tensor, states: Tensor) -> Tensor:
    """One token of N sequences.  x: [N, C]; taps: [W, C]; states: [N, W - 1, C], in place -> y [N, C] float32."""
    window = torch.cat([states, x[:, None]], dim=1)  # [N, W, C]
    states.copy_(window[:, 1:])
    return F.silu((window.float() * taps).sum(1), inplace=True)
