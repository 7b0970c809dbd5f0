"""The torch form of the mixture of experts against expert by expert."""

import pytest
import torch
from moe_cases import CASES, make_case
from tolerances import assert_close

from hotstart.kernels.moe import moe_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3, 65])
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_matches_expert_by_expert(num_tokens, dims, dtype):
    inputs, wanted = make_case(dims, num_tokens, dtype)
    out = moe_torch(*inputs)
    assert_close(out[:num_tokens], wanted)
    assert (out[num_tokens:] == 7).all()
    if dtype == torch.float32:
        assert_close(moe_torch(*inputs)[:num_tokens], 2 * wanted)
