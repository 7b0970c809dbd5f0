"""Gated activations: float32 inside, one rounding at the end."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from hotstart.kernels.activation import sigmoid_mul_torch, silu_mul_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gated_activations(dtype):
    x = torch.linspace(-60, 60, 84).view(3, 28).to(dtype)
    gate, up = x.double().chunk(2, dim=-1)
    assert_close(silu_mul_torch(x), F.silu(gate) * up)
    assert_close(sigmoid_mul_torch(x[:, 14:], x[:, :14]), up * gate.sigmoid())
    assert silu_mul_torch(x).dtype == dtype
