"""The torch form of the mixture of experts against expert by expert."""

import pytest
import torch
from tolerances import assert_close

from hotstart.kernels.moe import moe, moe_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3, 65])
@pytest.mark.parametrize(("experts", "top_k"), [(5, 2), (16, 3), (3, 3)])
def test_matches_expert_by_expert(num_tokens, experts, top_k, dtype):
    r = torch.Generator().manual_seed(0)
    D, width = 24, 16
    x = torch.randn(num_tokens + 2, D, generator=r).to(dtype)
    x[num_tokens:] = float("nan")
    logits = torch.randn(num_tokens + 2, experts, generator=r).to(dtype)
    gate_up = (torch.randn(experts, 2 * width, D, generator=r) * D**-0.5).to(dtype)
    down = (torch.randn(experts, D, width, generator=r) * width**-0.5).to(dtype)
    out = moe(x, logits, gate_up, down, top_k, True, num_tokens)
    wide = [t.double() for t in (x[:num_tokens], logits[:num_tokens], gate_up, down)]
    assert_close(out[:num_tokens], moe_reference(*wide, top_k, True))
    assert not out[num_tokens:].any()
