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
def test_add_rms_norm_leaves_the_sum_in_the_residual(shape, scale):
    x, residual, weight = rows(*shape, scale=scale), rows(*shape, scale=scale, seed=1), rows(shape[1], seed=2)
    wanted_residual, before = residual.double(), x.clone()
    wanted = norm.add_rms_norm_torch(x.double(), wanted_residual, weight.double(), 1e-6)
    assert_close(norm.add_rms_norm(x, residual, weight, 1e-6), wanted)
    assert_close(residual, wanted_residual)
    assert torch.equal(x, before)
