"""The norm in the dtypes that serve, against its torch form in float64."""

import pytest
import torch
from tolerances import assert_close

from hotstart.kernels import norm

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def rows(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1024), (17, 2560), (300, 5120), (3, 8192)], ids=str)
def test_add_rms_norm(shape, dtype):
    x, residual, weight = (rows(*s, dtype=dtype, seed=i) for i, s in enumerate((shape, shape, shape[1:])))
    total = (x.float() + residual.float()).to(dtype)
    y = norm.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    wanted = norm.add_rms_norm_torch(torch.zeros_like(total).double(), total.double(), weight.double(), 1e-6)
    assert_close(y, wanted)
