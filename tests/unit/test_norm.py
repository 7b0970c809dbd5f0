"""The torch form of the RMS norm against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from hotstart.kernels.norm import rms_norm_torch, row_length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e10])
def test_rms_norm(scale, dtype):
    r = torch.Generator().manual_seed(0)
    x = (torch.randn(5, 48, generator=r) * scale).to(dtype)
    weight = torch.randn(48, generator=r).to(dtype)
    actual = rms_norm_torch(x, weight, 1e-6)
    assert actual.dtype == dtype
    assert_close(actual, F.rms_norm(x.double(), (48,), 1 + weight.double(), 1e-6))


def test_row_length_counts_eps_inside_the_root():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e15, 0.0]])
    torch.testing.assert_close(row_length(x, 1.0), torch.tensor([[26.0**0.5], [1.0], [1e15]]))
