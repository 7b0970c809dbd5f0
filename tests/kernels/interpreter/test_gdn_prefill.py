"""The chunked kernels against the token-by-token definition, in float64 of the same inputs."""

from dataclasses import replace

import pytest
import torch
from steps import Row, make_step
from test_gdn import HARD, expected, make_dims, make_inputs
from tolerances import assert_close, relative_error

from hotstart.kernels import gdn_chunked, gdn_slabs, gdn_workspace
from hotstart.kernels.gdn import gated_delta_rule_reference
from hotstart.kernels.gdn_chunked import gated_delta_rule_chunked, gdn_prefill
from hotstart.kernels.target import Target

DIMS = {
    "three value heads a key head, K > V": make_dims(H=1, HV=3, K=24, V=16),
    "V > K, more than one tile of values": make_dims(H=1, HV=1, K=16, V=72),
}
# Prompts of a step; decoding rows stand before them in the packed rows.
PROMPTS = {
    "one token": [Row(1, start=6, read=2, write=2)],
    "ragged": [
        Row(4, start=2, read=2, write=2),
        Row(2, write=4),
        Row(33, start=3, read=1, write=1),
        Row(0, read=0, write=0),
        Row(16, start=16, read=3, write=5),
    ],
}
LONG = [Row(130, read=5, write=0)]


def forget():
    gdn_chunked._constants.cache_clear()
    gdn_chunked._mixer.cache_clear()


@pytest.fixture
def fresh_constants():
    forget()
    yield
    forget()


def case(dims, prompts, chunk_length, decodes=1, num_slots=6):
    step = make_step([Row(1, write=0)] * decodes, prompts, chunk_length=chunk_length, padding=2)
    packed, weights, conv, state = make_inputs(dims, step.num_tokens + 2, num_slots)
    return packed, weights, conv, state, step, dims


def prefill(packed, weights, conv, state, step, dims, **keywords):
    out = torch.full((packed.shape[0], dims.num_value_heads * dims.value_dim), float("nan"))
    conv, state = conv.clone(), state.clone()
    gdn_prefill(packed.clone(), weights, conv, state, step.prefill, dims, out, **keywords)
    return out, conv, state


def check(inputs, results, factor=1.0):
    packed, weights, conv, state, step, dims = inputs
    p = step.prefill
    wanted = expected(packed, weights, conv, state, step, dims)
    rows = slice(p.first_token, p.first_token + sum(p.lengths))
    written = [slot for slot, length in zip(p.writes, p.lengths, strict=True) if length]
    others = [slot for slot in range(conv.shape[0]) if slot not in written]
    assert_close(results[0][rows], wanted[0][rows], factor)
    assert results[0][: rows.start].isnan().all() and results[0][rows.stop :].isnan().all()
    for pool, before, after in ((results[1], conv, wanted[1]), (results[2], state, wanted[2])):
        assert_close(pool[written], after[written], factor)
        assert torch.equal(pool[others], before[others])


@pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS)
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_prompts_match_token_by_token(prompts, dims):
    inputs = case(dims, prompts, chunk_length=16)
    check(inputs, prefill(*inputs))


def test_a_long_prompt_matches_token_by_token():
    inputs = case(make_dims(H=1, HV=1, K=16, V=24), LONG, chunk_length=16)
    check(inputs, prefill(*inputs))


@pytest.mark.parametrize("chunk_length", [32, 64])
def test_other_chunk_lengths(chunk_length):
    inputs = case(DIMS["three value heads a key head, K > V"], [Row(66, read=1, write=1)], chunk_length)
    check(inputs, prefill(*inputs))


@pytest.mark.parametrize("size", [0.01, 1.0, 60.0])
def test_float16_keeps_its_digits_and_its_range(size):
    """Keys and queries of any size, the products of which float16 could not hold."""
    dims = make_dims(H=1, HV=2, K=32, V=16)
    step = make_step([], [Row(130, read=1, write=1)], chunk_length=64)
    packed, weights, conv, state = make_inputs(dims, 130, 3, torch.float16)
    packed[:, : dims.conv_channels] *= size
    conv *= size
    inputs = packed, weights, conv, state * size, step, dims
    wanted = expected(*inputs)
    out = torch.empty(130, dims.num_value_heads * dims.value_dim, dtype=torch.float16)
    gdn_prefill(packed.clone(), weights, conv, inputs[3], step.prefill, dims, out)
    assert relative_error(out, wanted[0]) < 1e-3 and relative_error(inputs[3][1], wanted[2][1]) < 1e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, about rows whose products are thrown away
@pytest.mark.parametrize("prompts", [[Row(65, read=1, write=1), Row(3, write=2)], [Row(65, read=1, write=1)]], ids=len)
def test_tiles_that_the_copy_engine_brings(prompts, monkeypatch, fresh_constants):
    """Sequences that end within a chunk: the rows behind them are others', or were never written."""
    hopper = Target("a Hopper", 90, 227 << 10, 132, "none")
    monkeypatch.setattr(gdn_chunked, "current_target", lambda: hopper)
    monkeypatch.setattr(
        gdn_chunked, "_ENGINE_TYPES", (torch.float32,)
    )  # bfloat16 products are wrong in the interpreter
    dims = make_dims(H=1, HV=2, K=64, V=64)
    inputs = case(dims, prompts, chunk_length=64)
    inputs[0][inputs[4].num_tokens :] = float("nan")
    monkeypatch.setattr(gdn_workspace, "APART_BYTES", 0)  # one prompt alone has its Z in its rows
    monkeypatch.setattr(gdn_chunked, "_LONG", 0)
    check(inputs, prefill(*inputs))


def test_what_fresh_slots_and_padding_rows_hold_does_not_show():
    prompts = [Row(17, write=4), Row(5, read=1, write=-1)]
    packed, weights, conv, state, step, dims = case(DIMS["three value heads a key head, K > V"], prompts, 16)
    clean = prefill(packed, weights, conv, state, step, dims)
    packed[step.num_tokens :] = float("nan")
    conv[4] = state[4] = float("nan")
    dirty = prefill(packed, weights, conv, state, step, dims)
    rows = slice(1, step.num_tokens)
    assert torch.equal(clean[0][rows], dirty[0][rows])
    for before, pool, other in ((conv, dirty[1], clean[1]), (state, dirty[2], clean[2])):
        assert torch.equal(pool[4], other[4])
        assert torch.equal(pool[[0, 1, 2, 3, 5]], before[[0, 1, 2, 3, 5]])


def test_slabs_change_no_bit(monkeypatch, fresh_constants):
    """Nor do neighbours."""
    dims = DIMS["V > K, more than one tile of values"]
    prompts = [Row(70, read=1, write=1), Row(20, write=2)]
    inputs = case(dims, prompts, 16, decodes=0)
    whole = prefill(*inputs)
    check(inputs, prefill(*inputs, choose=gdn_chunked.CHOICES[2]))  # numpy's products depend on their width
    monkeypatch.setattr(gdn_workspace, "WORKSPACE_BYTES", 0)  # a slab for each chunk
    forget()
    cut = prefill(*inputs)
    alone = prefill(inputs[0][70:90], *inputs[1:4], make_step([], [Row(20, write=2)], chunk_length=16), dims)
    rows = slice(0, 90)
    assert torch.equal(cut[0][rows], whole[0][rows])
    assert torch.equal(cut[1], whole[1])
    assert torch.equal(cut[2], whole[2])
    assert torch.equal(alone[0], whole[0][70:90])
    assert torch.equal(alone[2][2], whole[2][2])


@pytest.mark.parametrize(
    ("HV", "K", "V", "launches"), [(3, 24, 16, 2), (1, 16, 24, 3), (1, 24, 16, 1)], ids=["v", "v then q", "nowhere"]
)
def test_q_and_k_in_place_of_inputs_that_nobody_needs(HV, K, V, launches, monkeypatch, fresh_constants):
    dims = make_dims(H=1, HV=HV, K=K, V=V)
    inputs = case(dims, PROMPTS["ragged"], chunk_length=16)
    apart = prefill(*inputs)
    monkeypatch.setattr(gdn_workspace, "APART_BYTES", 0)
    forget()
    assert len(gdn_workspace.columns(dims, inputs[0].shape[0], 4).launches) == launches
    results = prefill(*inputs)
    check(inputs, results)
    rows = slice(1, inputs[4].num_tokens)
    assert torch.equal(results[0][rows], apart[0][rows])


@pytest.mark.parametrize(("HV", "apart"), [(3, True), (3, False), (1, False)], ids=["apart", "in the rows", "one head"])
def test_two_buffers_in_turns(HV, apart, monkeypatch, fresh_constants):
    """With memory of their own for q, k and Z, or with all three in the prompt's rows."""
    dims = make_dims(H=1, HV=HV, K=16, V=16)
    inputs = case(dims, LONG, 16)
    whole = prefill(*inputs)
    check(inputs, whole)
    forget()
    monkeypatch.setattr(gdn_slabs, "_BESIDE", 2)
    monkeypatch.setattr(gdn_workspace, "WORKSPACE_BYTES", 4 * HV * (2 * 16 * 16 + 8 * (2 * 16 * 16 + 36)))
    if not apart:
        monkeypatch.setattr(gdn_workspace, "APART_BYTES", 0)
    place = gdn_workspace.columns(dims, 133, 4)
    assert place.apart == apart and (place.z_at is None) == apart
    limit = gdn_workspace.slab_limit(dims, 16, 4, apart)
    walk = gdn_slabs.slabs((130,), 133, 16, limit, HV, 100)
    assert len(walk.slabs) >= 2 and walk.buffers == 2
    again = prefill(*inputs)
    assert torch.equal(again[0][1:131], whole[0][1:131])
    assert torch.equal(again[1], whole[1]) and torch.equal(again[2], whole[2])


@pytest.mark.parametrize("cut", [1, 16, 32, 35])
def test_a_prompt_in_two_steps(cut):
    """The same as in one, to the last bit where the cut is at a multiple of the chunk length."""
    dims = DIMS["three value heads a key head, K > V"]
    packed, weights, conv, state, step, _ = case(dims, [Row(40, read=3, write=3)], 16, decodes=0)
    whole = prefill(packed, weights, conv, state, step, dims)
    first = make_step([], [Row(cut, read=3, write=4)], chunk_length=16)
    second = make_step([], [Row(40 - cut, start=cut, read=4, write=3)], chunk_length=16)
    out, conv, state = prefill(packed[:cut], weights, conv, state, first, dims)
    rest, conv, state = prefill(packed[cut:40], weights, conv, state, second, dims)
    pairs = ((torch.cat([out, rest]), whole[0][:40]), (conv[3], whole[1][3]), (state[3], whole[2][3]))
    for actual, wanted in pairs:
        if cut % 16:
            assert_close(actual, wanted)
        else:
            assert torch.equal(actual, wanted)


GATES = {
    "no decay": (-30.0, 0.0, 0.0),
    "all is forgotten": (2.7, 100.0, 0.0),
    "softplus is linear": (0.0, 30.0, 0.0),
    "no write": (0.0, 0.0, -100.0),
    "the old value is replaced": (-30.0, 0.0, 100.0),
}


@pytest.mark.parametrize(("A_log", "a", "b"), GATES.values(), ids=GATES)
def test_extreme_gates(A_log, a, b):
    packed, weights, conv, state, step, dims = case(
        DIMS["three value heads a key head, K > V"], [Row(20, read=1, write=1)], 16
    )
    packed[:, dims.b_offset : dims.a_offset] = b
    packed[:, dims.a_offset : dims.a_offset + dims.num_value_heads] = a
    packed[9, dims.a_offset : dims.a_offset + dims.num_value_heads] = 0.0  # one token unlike the others
    inputs = packed, replace(weights, A_log=torch.full_like(weights.A_log, A_log)), conv, state, step, dims
    # Where a sum of large decays precedes a small one, its difference has lost that many digits.
    check(inputs, prefill(*inputs), factor=30 if a == 100.0 else 1)


@pytest.mark.parametrize("part", range(3))
def test_hard_inputs(part):
    """Those of the torch forms, a sequence of one step for each: gates that alternate or wipe, keys of any likeness."""
    dims, kinds = make_dims(H=1, HV=1, K=16, V=24), list(HARD)[part::3]
    prompts = [Row(43 if "a wipe" in kind else 20, read=i, write=i) for i, kind in enumerate(kinds)]
    packed, weights, conv, state, step, _ = case(dims, prompts, 16, decodes=0, num_slots=len(kinds))
    weights.conv.zero_()
    weights.conv[:, -1] = 1.0  # q, k and v are silu of the rows of packed
    weights.A_log.zero_(), weights.dt_bias.zero_()
    for kind, rows in zip(kinds, packed[: step.num_tokens].split(list(step.prefill.lengths)), strict=True):
        HARD[kind](rows, weights, dims)
    inputs = packed, weights, conv, state, step, dims
    check(inputs, prefill(*inputs))


def test_values_and_states_of_any_size():
    dims = make_dims(H=1, HV=1, K=16, V=24)
    packed, weights, conv, state, step, _ = case(dims, [Row(20, read=1, write=1)], 16, decodes=0)
    packed[:, 2 * dims.key_dim : dims.conv_channels] *= 1e3
    inputs = packed, weights, conv, state * 1e3, step, dims
    results, wanted = prefill(*inputs), expected(*inputs)
    assert relative_error(results[0][:20], wanted[0]) < 1e-5
    assert relative_error(results[2][1], wanted[2][1]) < 1e-5


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, about what is infinite in the middle of a sigmoid
def test_the_largest_inputs_stay_finite_and_right():
    """Of bfloat16, in every column but z: q, k and v of one size, gates that open and shut at once."""
    dims = make_dims(H=1, HV=1, K=16, V=24)
    packed, weights, conv, state, step, _ = case(dims, [Row(20, read=1, write=1)], 16, decodes=0)
    weights.conv.zero_()
    weights.conv[:, -1] = 1.0
    for columns in (packed[:, : dims.conv_channels], packed[:, dims.b_offset :]):
        columns.copy_(columns.sign() * torch.finfo(torch.bfloat16).max)
    inputs = packed, weights, conv, state, step, dims
    out, _, after = prefill(*inputs)
    assert_close(out[:20], expected(*inputs)[0][:20], factor=4)
    assert after[1].isfinite().all()


KEYS = {
    "zero": lambda k: k * 0,
    "tiny": lambda k: k * 1e-4,
    "large": lambda k: k * 1e4,
    "all the same": lambda k: k[:1].expand_as(k),
    "orthogonal": lambda k: torch.eye(16)[torch.arange(len(k)) % 16, None],
    "nearly the same": lambda k: k[:1] + 0.1 * k,
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_the_rule_alone_with_keys_of_every_kind(keys):
    r = torch.Generator().manual_seed(0)
    T, H, HV, K, V = 35, 1, 2, 16, 24
    q, k, v = (torch.randn(T, h, d, generator=r) for h, d in ((H, K), (H, K), (HV, V)))
    k = keys(k).contiguous()
    g, beta = -0.1 * torch.rand(T, HV, generator=r), torch.rand(T, HV, generator=r)
    state = torch.randn(2, HV, V, K, generator=r)
    step, out = make_step([], [Row(T, read=1, write=1)], chunk_length=16), torch.empty_like(v)
    units = [x.double() * (x.double().square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k)]
    wanted, after = gated_delta_rule_reference(
        units[0] * K**-0.5, units[1], v.double(), g.double(), beta.double(), state[1].double()
    )
    gated_delta_rule_chunked(q, k, v, g, beta, state, step.prefill, out)
    assert_close(out, wanted, factor=4)
    assert_close(state[1], after, factor=4)
