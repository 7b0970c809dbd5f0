"""The norm against its torch form in float64."""

import pytest
import torch
from tolerances import assert_close

from hotstart.kernels import norm

SHAPES = [(1, 16), (3, 320), (17, 129), (0, 64)]
SCALES = [0.0, 1e-4, 1.0, 1e4]


def rows(*shape, scale=1.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(shape, scale):
    x, weight = rows(*shape, scale=scale), rows(shape[1], seed=2)
    assert_close(norm.rms_norm(x, weight, 1e-6), norm.rms_norm_torch(x.double(), weight.double(), 1e-6))
