"""The torch forms of the Gated DeltaNet mixer against its token-by-token definition."""

import pytest
import torch
from steps import Row, make_step
from tolerances import assert_close, relative_error

from hotstart.kernels import gdn
from hotstart.kernels.gdn import CPU_CHUNK_LENGTH, gdn_decode, gdn_prefill, gdn_reference
from hotstart.kernels.ops import GdnDims, GdnWeights


def make_dims(H=2, HV=6, K=24, V=16):
    return GdnDims(num_key_heads=H, num_value_heads=HV, key_dim=K, value_dim=V, conv_width=4, eps=1e-6)


def make_inputs(dims, num_tokens, num_slots, dtype=torch.float32, seed=0):
    r = torch.Generator().manual_seed(seed)
    HV = dims.num_value_heads

    def normal(*shape):
        return torch.randn(*shape, generator=r)

    weights = GdnWeights(
        conv=(normal(dims.conv_channels, dims.conv_width) * 0.5).to(dtype),
        A_log=torch.empty(HV).uniform_(0.01, 16, generator=r).log_(),
        dt_bias=normal(HV) - 3,
        norm=1 + 0.1 * normal(dims.value_dim),
    )
    packed = normal(num_tokens, dims.packed_width).to(dtype)
    conv = normal(num_slots, dims.conv_width, dims.conv_channels).to(dtype)
    state = normal(num_slots, HV, dims.value_dim, dims.key_dim)
    return packed, weights, conv, state


def expected(packed, weights, conv, state, step, dims):
    """Row by row with the reference: the outputs of the real tokens, and the pools after the step, in float64."""
    conv_after, state_after = conv.double(), state.double()
    d, p = step.decode, step.prefill
    rows = [(1, d.contexts[i], d.reads[i], d.writes[i]) for i in range(d.num_sequences)]
    rows += zip(p.lengths, p.contexts, p.reads, p.writes, strict=True)
    outputs, first = [], 0
    for length, end, read, write in rows:
        c = conv[read] if read >= 0 else torch.zeros_like(conv[0])
        s = state[read] if read >= 0 else torch.zeros_like(state[0])
        c = c.roll(length - end, dims=0)  # a ring -> oldest first
        y, c, state_after[write] = gdn_reference(packed[first : first + length], weights, c, s, dims)
        conv_after[write] = c.roll(end, dims=0)
        outputs.append(y)
        first += length
    none = packed.new_empty(0, dims.num_value_heads * dims.value_dim, dtype=torch.float64)
    return torch.cat([none, *outputs]), conv_after, state_after


def run(packed, weights, conv, state, step, dims):
    """What the ops make of it.  What they must not read is poisoned, and what they must not write stays as it is."""
    out = torch.full((packed.shape[0], dims.num_value_heads * dims.value_dim), float("nan"), dtype=packed.dtype)
    conv, state = conv.clone(), state.clone()
    spans = [step.decode, step.prefill]
    reads, writes = ({slot for span in spans for slot in getattr(span, kind)} for kind in ("reads", "writes"))
    unread = [slot for slot in range(len(conv)) if slot not in reads]
    conv[unread], state[unread] = float("nan"), float("nan")
    gdn_decode(packed, weights, conv, state, step.decode, dims, out)
    gdn_prefill(packed, weights, conv, state, step.prefill, dims, out)
    assert out[step.num_tokens :].isnan().all(), "rows of padding were written"
    untouched = [slot for slot in unread if slot not in writes]
    assert conv[untouched].isnan().all() and state[untouched].isnan().all(), "foreign slots were written"
    return out[: step.num_tokens], conv, state


def check(inputs, step, dims):
    inputs[0][step.num_tokens :] = float("nan")
    before = [pool.clone() for pool in inputs[2:]]
    out, conv_after, state_after = run(*inputs, step, dims)
    wanted, conv_wanted, state_wanted = expected(*inputs, step, dims)
    assert_close(out, wanted)
    writes = sorted({*step.decode.writes, *step.prefill.writes} - {-1})
    assert_close(conv_after[writes], conv_wanted[writes])
    assert_close(state_after[writes], state_wanted[writes])
    kept = sorted({*step.decode.reads, *step.prefill.reads} - {-1, *writes})
    for pool, old in zip((conv_after, state_after), before, strict=True):
        assert torch.equal(pool[kept], old[kept]), "a slot that is only read was changed"


@pytest.fixture(params=["one slab", "small slabs"])
def slabs(request, monkeypatch):
    """Small models fit into one slab; large ones take slab after slab, and here small ones do, too."""
    if request.param == "small slabs":
        monkeypatch.setattr(gdn, "SLAB_BYTES", 60_000)
        monkeypatch.setattr(gdn, "MOVED_BYTES", 0)


STEPS = {
    "one token": ([Row(1, start=5, read=1, write=1)], []),
    "a first token": ([Row(1, read=-1, write=1)], []),
    "decodes": ([Row(1, start=s + 7, read=s, write=s) for s in (4, 0, 2)], []),
    "one prompt": ([], [Row(65, write=1)]),
    "ragged prompts": (
        [],
        [
            Row(2, write=1),
            Row(63, start=5, read=2, write=2),
            Row(0, start=3, read=3, write=3),
            Row(130, write=0),
            Row(3, start=6, read=6, write=7),
        ],
    ),
    "mixed": (
        [Row(1, start=9, read=3, write=3), Row(1, write=5)],
        [Row(3, start=2, read=0, write=4), Row(64, write=1)],
    ),
}


@pytest.mark.usefixtures("slabs")
@pytest.mark.parametrize("heads", [(2, 6), (3, 3), (1, 2)], ids=str)
@pytest.mark.parametrize("case", STEPS)
def test_step_matches_token_by_token(case, heads):
    dims = make_dims(*heads)
    decodes, prefills = STEPS[case]
    step = make_step(decodes, prefills, chunk_length=CPU_CHUNK_LENGTH, padding=2)
    check(make_inputs(dims, step.num_tokens + 2, 8), step, dims)


def set_gate(packed, weights, dims, g):
    """Choose a so that the decay of token t is exp(g[t]) in every head."""
    weights.A_log.zero_(), weights.dt_bias.zero_()
    g = torch.as_tensor(g, dtype=torch.float32).expand(len(packed))
    a = torch.where(g < -20, -g, torch.log(torch.expm1(-g)).clamp(min=-100))  # softplus backwards
    packed[:, dims.a_offset : dims.a_offset + dims.num_value_heads] = a[:, None]


def set_beta(packed, dims, logit):
    packed[:, dims.b_offset : dims.a_offset] = logit


def keys_of(packed, dims):
    width = dims.num_key_heads * dims.key_dim
    return packed[:, width : 2 * width]


def identical_keys(packed, weights, dims):
    keys_of(packed, dims)[:] = keys_of(packed, dims)[0].clone()
    set_gate(packed, weights, dims, 0.0)
    set_beta(packed, dims, 100.0)


def correlated_keys(packed, weights, dims):
    keys = keys_of(packed, dims)
    keys[:] = keys[0].abs() + 0.1 * keys
    set_gate(packed, weights, dims, -1e-3)
    set_beta(packed, dims, 4.0)


def one_wipe(at):
    def make(packed, weights, dims):
        g = torch.full((len(packed),), -0.01)
        g[at] = -80.0
        set_gate(packed, weights, dims, g)

    return make


def scaled(part, factor):
    def make(packed, weights, dims):
        width = dims.num_key_heads * dims.key_dim
        start, stop = {"q": (0, width), "k": (width, 2 * width), "v": (2 * width, dims.conv_channels)}[part]
        packed[:, start:stop] *= factor

    return make


HARD = {
    "identical keys": identical_keys,
    "correlated keys": correlated_keys,
    "no decay": lambda p, w, d: set_gate(p, w, d, 0.0),
    "faint decay": lambda p, w, d: set_gate(p, w, d, -1e-6),
    "a wipe at every token": lambda p, w, d: set_gate(p, w, d, -50.0),
    "a wipe at every other token": lambda p, w, d: set_gate(p, w, d, torch.arange(len(p)) % 2 * -80.0),
    "a wipe in a chunk": one_wipe(CPU_CHUNK_LENGTH + 9),
    "a wipe at a chunk's start": one_wipe(CPU_CHUNK_LENGTH),
    "a wipe at the end": one_wipe(-1),
    "beta 0": lambda p, w, d: set_beta(p, d, -200.0),
    "beta 1": lambda p, w, d: set_beta(p, d, 200.0),
    "no keys": scaled("k", 0.0),
    "no queries": scaled("q", 0.0),
    "no values": scaled("v", 0.0),
    "short keys": scaled("k", 1e-3),
    "long keys": scaled("k", 1e4),
}


@pytest.mark.usefixtures("slabs")
@pytest.mark.parametrize("case", HARD)
def test_hard_inputs(case):
    dims = make_dims()
    rows = [Row(1, read=2, write=2)], [Row(90, read=4, write=4), Row(40, write=1)]
    step = make_step(*rows, chunk_length=CPU_CHUNK_LENGTH, padding=1)
    packed, weights, conv, state = make_inputs(dims, step.num_tokens + 1, 6)
    weights.conv.zero_()
    weights.conv[:, -1] = 1.0  # q, k and v are silu of the rows of packed
    HARD[case](packed, weights, dims)
    check((packed, weights, conv, state), step, dims)


def test_large_values_keep_their_relative_precision():
    dims = make_dims()
    step = make_step([], [Row(90, read=0, write=0)], chunk_length=CPU_CHUNK_LENGTH)
    packed, weights, conv, state = make_inputs(dims, step.num_tokens, 1)
    scaled("v", 1e3)(packed, weights, dims)
    inputs = packed, weights, conv, state * 1e3
    for actual, wanted in zip(run(*inputs, step, dims), expected(*inputs, step, dims), strict=True):
        assert relative_error(actual, wanted) < 1e-5


@pytest.mark.usefixtures("slabs")
@pytest.mark.parametrize("cut", [1, 3, CPU_CHUNK_LENGTH - 1, CPU_CHUNK_LENGTH, CPU_CHUNK_LENGTH + 1, 89])
def test_a_prompt_in_two_steps_is_the_prompt(cut):
    dims, T = make_dims(), 90
    packed, weights, conv, state = make_inputs(dims, T, 3)
    whole = run(packed, weights, conv, state, make_step([], [Row(T, write=1)], chunk_length=CPU_CHUNK_LENGTH), dims)
    first = make_step([], [Row(cut, write=1)], chunk_length=CPU_CHUNK_LENGTH)
    out_1, conv, state = run(packed[:cut], weights, conv, state, first, dims)
    rest = make_step([], [Row(T - cut, start=cut, read=1, write=1)], chunk_length=CPU_CHUNK_LENGTH)
    out_2, conv, state = run(packed[cut:], weights, conv, state, rest, dims)
    assert_close(torch.cat([out_1, out_2]), whole[0])
    assert torch.equal(conv[1], whole[1][1])
    assert_close(state[1], whole[2][1])


def test_decode_continues_as_prefill_would():
    dims, T = make_dims(), 40
    packed, weights, conv, state = make_inputs(dims, T, 3)
    whole = run(packed, weights, conv, state, make_step([], [Row(T, write=1)], chunk_length=CPU_CHUNK_LENGTH), dims)
    for t in range(T):
        step = make_step([Row(1, start=t, read=1 if t else -1, write=1)], [])
        out, conv, state = run(packed[t : t + 1], weights, conv, state, step, dims)
        assert_close(out[0], whole[0][t])
    assert torch.equal(conv[1], whole[1][1])
    assert_close(state[1], whole[2][1])


@pytest.mark.usefixtures("slabs")
def test_a_sequence_does_not_know_its_neighbours():
    """Alone and beside others, to 1e-5; a neighbour full of NaN stays alone with them."""
    dims = make_dims()
    rows = [Row(1, read=6, write=6), Row(1, read=0, write=0), Row(1, read=3, write=3)]
    spans = [Row(33, write=1), Row(90, read=2, write=2), Row(5, read=4, write=4), Row(64, write=5)]
    step = make_step(rows, spans, chunk_length=CPU_CHUNK_LENGTH)
    packed, weights, conv, state = make_inputs(dims, step.num_tokens, 8)
    starts = [0, 1, 2, 3, 36, 126, 131]
    packed[1], packed[36:126] = float("nan"), float("nan")
    out, conv_after, state_after = run(packed, weights, conv, state, step, dims)
    for i, row in enumerate([*rows, *spans]):
        if i in (1, 4):
            continue
        alone = make_step([row] if i < 3 else [], [row] if i >= 3 else [], chunk_length=CPU_CHUNK_LENGTH)
        part = slice(starts[i], starts[i] + row.length)
        wanted = run(packed[part], weights, conv, state, alone, dims)
        assert_close(out[part], wanted[0], 0.1)
        assert torch.equal(conv_after[row.write], wanted[1][row.write])
        assert_close(state_after[row.write], wanted[2][row.write], 0.1)


def test_low_precision_rounds_only_at_the_ends():
    """Activations in bfloat16, arithmetic in float32; states may be bfloat16, too."""
    dims = make_dims()
    step = make_step([Row(1, read=3, write=3)], [Row(70, write=1), Row(5, read=0, write=0)], chunk_length=32)
    for state_dtype in (torch.float32, torch.bfloat16):
        packed, weights, conv, state = make_inputs(dims, step.num_tokens, 6, torch.bfloat16)
        check((packed, weights, conv, state.to(state_dtype)), step, dims)
