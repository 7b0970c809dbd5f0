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
def test_rms_norm(shape, dtype):
    x, weight = rows(*shape, dtype=dtype), rows(shape[1], dtype=dtype, seed=1)
    assert_close(norm.rms_norm(x, weight, 1e-6), norm.rms_norm_torch(x.double(), weight.double(), 1e-6))
