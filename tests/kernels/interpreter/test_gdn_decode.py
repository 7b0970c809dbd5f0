"""The decode kernels against the token-by-token definition, in float64 of the same inputs."""

from dataclasses import replace

import pytest
import torch
from steps import Row, make_step
from test_gdn import expected, make_dims, make_inputs
from tolerances import assert_close

from hotstart.kernels.gdn_decode import gdn_decode

DIMS = {
    "three value heads a key head, K > V": make_dims(H=2, HV=6, K=24, V=16),
    "one head, V > K": make_dims(H=1, HV=1, K=16, V=40),
    "eight value heads a key head": make_dims(H=1, HV=8, K=16, V=24),
    "more channels than a block": make_dims(H=4, HV=12, K=64, V=56),
}
# Slots that a row reads and writes; a padding row follows each case's last.  Each row is at a position of its own.
ROWS = {
    "in place": [(3, 3), (0, 0), (5, 5)],
    "to another slot": [(1, 4), (0, 0)],
    "from zero": [(-1, 2), (-1, 0)],
    "none": [],
}


def decode(packed, weights, conv, state, step, dims):
    out = torch.full((packed.shape[0], dims.num_value_heads * dims.value_dim), float("nan"))
    conv, state = conv.clone(), state.clone()
    gdn_decode(packed, weights, conv, state, step.decode, dims, out)
    return out, conv, state


def case(dims, slots, padding=1, num_slots=7, seed=0):
    step = make_step([Row(1, start=s, read=r, write=w) for s, (r, w) in enumerate(slots)], [], padding=padding)
    packed, weights, conv, state = make_inputs(dims, len(slots) + padding, num_slots, seed=seed)
    for read, write in slots:
        if read < 0:  # what a slot held before must not show
            conv[write], state[write] = float("nan"), float("nan")
    return packed, weights, conv, state, step, dims


@pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS)
@pytest.mark.parametrize("slots", ROWS.values(), ids=ROWS)
def test_a_step_matches_token_by_token(dims, slots):
    inputs = case(dims, slots)
    out, conv, state = decode(*inputs)
    wanted = expected(*inputs)
    written = [write for _, write in slots]
    assert_close(out[: len(slots)], wanted[0][: len(slots)])
    assert_close(conv[written], wanted[1][written])
    assert_close(state[written], wanted[2][written])
    # A padding row touches nothing, and neither does a real one beyond its slots.
    others = [slot for slot in range(conv.shape[0]) if slot not in written]
    assert out[len(slots) :].isnan().all()
    assert torch.equal(conv[others], inputs[2][others])
    assert torch.equal(state[others], inputs[3][others])


GATES = {
    "no decay": (-30.0, 0.0, 0.0),
    "all is forgotten": (2.7, 100.0, 0.0),
    "softplus is linear": (0.0, 30.0, 0.0),
    "no write": (0.0, 0.0, -100.0),
    "the old value is replaced": (-30.0, 0.0, 100.0),
}


@pytest.mark.parametrize(("A_log", "a", "b"), GATES.values(), ids=GATES)
def test_extreme_gates(A_log, a, b):
    dims = DIMS["three value heads a key head, K > V"]
    packed, weights, conv, state, step, dims = case(dims, ROWS["in place"])
    packed[:, dims.b_offset : dims.a_offset] = b
    packed[:, dims.a_offset : dims.a_offset + dims.num_value_heads] = a
    weights = replace(weights, A_log=torch.full_like(weights.A_log, A_log))
    inputs = packed, weights, conv, state, step, dims
    for actual, wanted in zip(decode(*inputs), expected(*inputs), strict=True):
        assert_close(actual[:3], wanted[:3])


# The last: of bfloat16.
EXTREMES = {"zero": 0.0, "tiny": 1e-5, "large": 1e4, "largest": torch.finfo(torch.bfloat16).max}


@pytest.mark.parametrize("size", EXTREMES.values(), ids=EXTREMES)
def test_inputs_of_any_size_stay_finite_and_right(size):
    dims = DIMS["one head, V > K"]
    packed, weights, conv, state, step, dims = case(dims, ROWS["in place"])
    if size > 1e30:  # sums of such would be infinite, here and in the reference
        weights.conv[:, :-1] = 0.0
        weights.conv[:, -1] = 1.0
        conv, packed = conv.sign(), packed.sign()
    packed[:, : dims.conv_channels] *= size
    inputs = packed, weights, conv * size, state, step, dims
    out, _, _ = decode(*inputs)
    assert out[:3].isfinite().all()
    assert_close(out[:3], expected(*inputs)[0][:3], factor=4)


def test_a_row_does_not_depend_on_its_neighbours():
    dims = DIMS["three value heads a key head, K > V"]
    together = decode(*case(dims, ROWS["in place"]))
    packed, weights, conv, state, _, _ = case(dims, ROWS["in place"])
    alone = make_step([Row(1, start=1, read=0, write=0)], [], padding=0)
    out, conv, state = decode(packed[1:2], weights, conv, state, alone, dims)
    assert torch.equal(out[0], together[0][1])
    assert torch.equal(conv[0], together[1][0])
    assert torch.equal(state[0], together[2][0])


def test_many_steps_carry_both_states():
    dims = DIMS["one head, V > K"]
    _, weights, conv, state, _, dims = case(dims, [(-1, 2)], padding=0)
    tokens = torch.randn(12, dims.packed_width, generator=torch.Generator().manual_seed(1))
    prompt = make_step([], [Row(12, write=2)])
    wanted = expected(tokens, weights, conv, state, prompt, dims)
    for t in range(12):
        step = make_step([Row(1, start=t, read=2 if t else -1, write=2)], [])
        out, conv, state = decode(tokens[t : t + 1], weights, conv, state, step, dims)
        assert_close(out[0], wanted[0][t])
    assert_close(conv[2], wanted[1][2])
    assert_close(state[2], wanted[2][2])
