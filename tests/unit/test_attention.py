"""The torch forms of gated attention over pages, against attention written out."""

import pytest
import torch.nn.functional as F
from attention_cases import assert_matches, make_case, run

from hotstart.kernels.attention import paged_attention_torch
from hotstart.kernels.attention_prepare import attention_prepare_torch
from hotstart.kernels.ops import AttentionDims

STEPS = {  # decodes, prefills: length and tokens before
    "one token": ([(1, 9)], []),
    "decodes": ([(1, 9), (1, 0), (1, 3)], []),
    "decodes of very different lengths": ([(1, 2), (1, 90), (1, 0), (1, 5)], []),
    "one prompt": ([], [(70, 0)]),
    "a long prompt": ([], [(300, 60)]),
    "mixed": ([(1, 9), (1, 6)], [(5, 0), (3, 6), (0, 0), (9, 4)]),
}


@pytest.mark.parametrize("heads", [(6, 2, 24, 8), (3, 1, 16, 16)], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_step_matches_attention_written_out(name, heads):
    dims = AttentionDims(*heads, eps=1e-6)
    case = make_case(*STEPS[name], dims, page_size=4)
    assert_matches(case, run(case, attention_prepare_torch, paged_attention_torch))


@pytest.mark.parametrize("name", STEPS)
def test_masks_are_as_cudnn_wants_them(name, monkeypatch):
    """Its kernels take any mask, and fail on the address of one that is not aligned."""
    attend, masks = F.scaled_dot_product_attention, []

    def watched(*args, attn_mask=None, **kwargs):
        masks.extend([] if attn_mask is None else [attn_mask])
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    dims = AttentionDims(6, 2, 24, 8, eps=1e-6)
    run(make_case(*STEPS[name], dims, page_size=4), attention_prepare_torch, paged_attention_torch)
    assert masks or name in ("one token", "decodes of very different lengths")
    assert all(mask.is_contiguous() and mask.data_ptr() % 16 == 0 for mask in masks)
