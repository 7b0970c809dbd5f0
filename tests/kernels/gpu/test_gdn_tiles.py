"""Whatever tiles are chosen: the cuts of the scan agree to the last bit, and results stay right."""

import pytest
import torch
from steps import Row, make_step, moved
from test_gdn import expected, make_dims, make_inputs
from tolerances import relative_error

from hotstart.kernels import gdn_tiles
from hotstart.kernels.gdn_chunked import CHOICES, gdn_prefill
from hotstart.kernels.target import current_target

ROWS = [Row(200, write=1), Row(63, read=2, write=2), Row(65, read=4, write=0)]


def inputs(heads):
    dims = make_dims(*heads, K=128, V=128)
    step = make_step([], ROWS, chunk_length=64)
    return (*make_inputs(dims, step.num_tokens, 8, torch.bfloat16), step, dims)


def prefill(packed, weights, conv, state, step, dims, **keywords):
    packed, weights, conv, state, step = (
        moved(x, "cuda") for x in (packed, weights, conv.clone(), state.clone(), step)
    )
    out = torch.empty(packed.shape[0], dims.num_value_heads * dims.value_dim, device="cuda", dtype=packed.dtype)
    gdn_prefill(packed, weights, conv, state, step.prefill, dims, out, **keywords)
    return out.cpu(), conv.cpu(), state.cpu()


@pytest.mark.parametrize("tunable", [gdn_tiles._conv, gdn_tiles._prep, gdn_tiles._scan], ids=lambda t: t.name)
def test_every_candidate_is_right_and_its_cuts_agree(tunable):
    case = inputs((4, 12))
    wanted = expected(*case)
    shape = gdn_tiles.RuleShape.of(case[-1], case[-2].prefill.chunk_length, torch.bfloat16)
    for tiles in tunable.candidates(current_target(), shape):
        with tunable.using(shape, tiles):
            first, *others = (prefill(*case, choose=choose) for choose in CHOICES)
        for other in others:
            for one, another in zip(first, other, strict=True):
                assert torch.equal(one, another), tiles
        assert relative_error(first[0], wanted[0]) < 5e-3, tiles
        assert relative_error(first[2][[0, 1, 2]], wanted[2][[0, 1, 2]]) < 5e-3, tiles
