"""Experts of published sizes on cards with 99 KiB of shared memory: working out which of them see which tokens fits."""

import pytest
import torch
from moe_cases import route

from hotstart.kernels import dry
from hotstart.kernels.launch import recording
from hotstart.kernels.ops import MoeDims


@pytest.mark.parametrize(("target", "experts", "top_k"), [("sm_89", 256, 8), ("sm_120", 512, 10)])
def test_blocks_of_tokens_fit_the_card(target, experts, top_k):
    dims = MoeDims(num_experts=experts, top_k=top_k, width=512, renormalise=True, shares=True)
    with dry.gpu(target) as gpu, recording() as record:
        for num_tokens in (2, 257):
            logits = torch.empty(num_tokens, dims.logit_width, dtype=torch.bfloat16, device="meta")
            route(logits, torch.empty(num_tokens, dtype=torch.int64, device="meta"), dims, rows=64)
    assert len(record.binaries) == 4
    assert all(binary.metadata.shared <= gpu.shared_bytes for binary in record.binaries.values())
