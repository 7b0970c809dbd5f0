"""Causal depthwise convolution with SiLU: y_t = silu(sum_j w_j x_(t - W + 1 + j)); the state is the last W - 1 raw x.

Source: the short convolution of Mamba, Gu & Dao 2023, arXiv:2312.00752.
"""

from collections.abc import Sequence

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


def causal_conv_step(x: Tensor, weight: Tensor, states: Tensor) -> Tensor:
    """One token of N sequences.  x: [N, C]; states: [N, W - 1, C], advanced in place -> y [N, C] float32."""
    window = torch.cat([states, x[:, None]], dim=1)  # [N, W, C]
    states.copy_(window[:, 1:])
    return F.silu((window.float() * weight.T).sum(1))


def causal_conv(x: Tensor, weight: Tensor, states: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """Packed sequences.  x: [T, C]; states: one [W - 1, C] each, advanced in place -> y [T, C] float32."""
    width = weight.shape[1]
    taps = weight.float().T.contiguous()  # [W, C]
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    start = 0
    for state, length in zip(states, lengths, strict=True):
        if length:
            window = torch.cat([state, x[start : start + length]])  # [W - 1 + T, C]
            rows = torch.mul(window[:length], taps[0], out=y[start : start + length])
            for j in range(1, width):
                rows.addcmul_(window[j : j + length], taps[j])
            state.copy_(window[length:])
        start += length
    return F.silu(y, inplace=True)
