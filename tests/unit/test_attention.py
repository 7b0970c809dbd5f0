"""The torch forms of gated attention over pages, against attention written out."""

import pytest
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
