"""The mixer around a library's rule: a stand-in with the library's signature computes it token by token."""

from itertools import pairwise

import pytest
import torch
from steps import Row, make_step
from test_gdn import STEPS, expected, make_dims, make_inputs
from tolerances import assert_close

from hotstart.kernels import gdn_external
from hotstart.kernels.gdn import gated_delta_rule_reference

DIMS = {
    "three value heads a key head, K > V": make_dims(H=2, HV=6, K=24, V=16),
    "one head, V > K": make_dims(H=1, HV=1, K=16, V=40),
}
CASES = {name: rows for name, (decodes, rows) in STEPS.items() if rows and not decodes} | {
    "beside decoding sequences": [Row(3, read=0, write=4), Row(2, write=1)]
}


def like_fla(
    q, k, v, g, beta, *, initial_state, output_final_state, state_v_first, cu_seqlens, chunk_indices, chunk_size
):
    """Log decay; inputs with a leading 1; states [N, HV, V, K]; q not yet scaled."""
    assert output_final_state and state_v_first and q.shape[0] == 1 and chunk_size == 64
    lengths = cu_seqlens.diff().tolist()
    assert chunk_indices.tolist() == [[i, c] for i, n in enumerate(lengths) for c in range(-(-n // 64))]
    out, states = torch.empty_like(v), torch.empty_like(initial_state)
    for i, (a, b) in enumerate(pairwise(cu_seqlens.tolist())):
        span = [x[0, a:b] for x in (q * q.shape[-1] ** -0.5, k, v, g, beta)]
        out[0, a:b], states[i] = gated_delta_rule_reference(*span, initial_state[i])
    return out, states


def like_flashinfer(q, k, v, *, g, beta, initial_state, output_final_state, output_state, cu_seqlens):
    """Linear decay, no leading dimension, and the states in the tensor that was given."""
    ones = (x.unsqueeze(0) for x in (q, k, v, g.log(), beta))
    chunks = [[i, c] for i, n in enumerate(cu_seqlens.diff().tolist()) for c in range(-(-n // 64))]
    options = {
        "output_final_state": output_final_state,
        "state_v_first": True,
        "cu_seqlens": cu_seqlens,
        "chunk_size": 64,
    }
    out, states = like_fla(*ones, initial_state=initial_state, chunk_indices=torch.tensor(chunks), **options)
    return out[0], output_state.copy_(states)


OPS = {"fla": gdn_external.gdn_prefill_fla, "flashinfer": gdn_external.gdn_prefill_flashinfer}
SMALL, BESIDE = DIMS["one head, V > K"], "beside decoding sequences"


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    monkeypatch.setattr(gdn_external, "_of_fla", lambda: like_fla)
    monkeypatch.setattr(gdn_external, "_of_flashinfer", lambda: like_flashinfer)


@pytest.mark.parametrize(
    ("library", "dims", "case"),
    [("fla", SMALL, case) for case in CASES]
    + [(library, DIMS["three value heads a key head, K > V"], BESIDE) for library in OPS],
    ids=lambda value: value if isinstance(value, str) else f"{value.num_value_heads} heads",
)
def test_prefill_matches_token_by_token(library, dims, case):
    rows, decodes = CASES[case], [Row(1, read=3, write=3)] if case == BESIDE else []
    step = make_step(decodes, rows, padding=1)
    packed, weights, conv, state = make_inputs(dims, step.num_tokens + 1, 8)
    for row in rows:
        if row.read < 0:  # what a slot held before must not show
            conv[row.write], state[row.write] = float("nan"), float("nan")
    wanted = expected(packed, weights, conv, state, step, dims)
    before = conv.clone(), state.clone()
    out = torch.full((packed.shape[0], dims.num_value_heads * dims.value_dim), float("nan"))
    OPS[library](packed, weights, conv, state, step.prefill, dims, out)
    first, last = len(decodes), step.num_tokens
    written = [row.write for row in rows]
    others = [slot for slot in range(8) if slot not in written]
    assert_close(out[first:last], wanted[0][first:last])
    assert out[:first].isnan().all() and out[last:].isnan().all()
    assert_close(conv[written], wanted[1][written])
    assert_close(state[written], wanted[2][written])
    assert torch.equal(conv[others], before[0][others])
    assert torch.equal(state[others], before[1][others])


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_a_step_without_prompts_touches_nothing(op):
    packed, weights, conv, state = make_inputs(SMALL, 2, 3)
    out = torch.zeros(2, SMALL.value_dim)
    op(packed, weights, conv, state, make_step([Row(1, read=0, write=0)], [], padding=1).prefill, SMALL, out)
    assert not out.any()
