"""The prefill kernels at published head shapes, against the token-by-token definition in float64 on the same inputs.

Products have bfloat16 operands (float32 inputs: tf32) and float32 sums, so errors are those of one rounding of each
operand.  LIMITS are relative L2 errors; states that never decay and keys that are nearly parallel add up more of them.
"""

from dataclasses import replace

import pytest
import torch
from steps import Row, make_step, moved
from test_gdn import HARD, expected, make_dims, make_inputs
from tolerances import relative_error

from bench.gdn_errors import rule_in_float64
from hotstart.kernels import gdn_chunked, gdn_slabs, gdn_tiles, gdn_workspace
from hotstart.kernels.gdn_chunked import gated_delta_rule_chunked, gdn_prefill
from hotstart.kernels.gdn_decode import gdn_decode
from hotstart.kernels.launch import recording
from hotstart.kernels.target import Target, current_target

HEADS = [(16, 16), (16, 32), (16, 48), (16, 64), (8, 24), (4, 8), (2, 8), (1, 1), (1, 3)]
SIZES = [(96, 192), (64, 48), (256, 256), (128, 64), (64, 128)]
OUT, STATE = 4.5e-3, 4e-3
SLOW_OUT, SLOW_STATE = 1e-2, 1.5e-2  # of states that hardly decay, and of keys that are nearly parallel
RULE_OUT, RULE_STATE = 3.5e-3, 3e-3  # of the rule alone, whose inputs nobody has rounded on the way, on any keys
KIB = 1024
RAGGED = [
    Row(1, read=1, write=1),
    Row(65, write=2),
    Row(0, read=7, write=7),
    Row(63, start=6, read=0, write=5),
    Row(130, start=65, read=4, write=4),
    Row(3, write=6),
]


def case(dims, prompts, dtype=torch.bfloat16, state_dtype=torch.float32, decodes=1, num_slots=9, seed=0):
    decoding = [Row(1, read=num_slots - 1, write=num_slots - 1)] * decodes
    step = make_step(decoding, prompts, padding=2)
    inputs = make_inputs(dims, step.num_tokens + 2, num_slots, dtype, seed=seed)
    inputs[0][step.num_tokens :] = float("nan")  # rows of padding
    for prompt in prompts:
        if prompt.read < 0 and prompt.length:  # what a fresh slot held
            inputs[2][prompt.write] = inputs[3][prompt.write] = float("nan")
    packed, weights, conv, state = (moved(x, "cuda") for x in inputs)
    return packed, weights, conv, state.to(state_dtype), moved(step, "cuda"), dims


def prefill(packed, weights, conv, state, step, dims, **keywords):
    out = torch.full((packed.shape[0], dims.num_value_heads * dims.value_dim), float("nan"), device="cuda")
    out, conv, state = out.to(packed.dtype), conv.clone(), state.clone()
    gdn_prefill(packed.clone(), weights, conv, state, step.prefill, dims, out, **keywords)
    return out, conv, state


def check(inputs, results, out_limit=OUT, state_limit=STATE):
    _, _, conv, state, step, _ = inputs
    p, wanted = step.prefill, expected(*inputs)
    rows = slice(p.first_token, p.first_token + sum(p.lengths))
    written = [slot for slot, length in zip(p.writes, p.lengths, strict=True) if length]
    others = [slot for slot in range(conv.shape[0]) if slot not in written]
    assert relative_error(results[0][rows], wanted[0][rows]) < out_limit
    assert results[0][: rows.start].isnan().all() and results[0][rows.stop :].isnan().all()
    assert torch.equal(results[1][written].double(), wanted[1][written])
    for slot in written:
        assert relative_error(results[2][slot], wanted[2][slot]) < state_limit, slot
    assert torch.equal(results[1][others], conv[others])
    assert torch.equal(results[2][others], state[others])


def same(results, wanted, rows):
    return (
        torch.equal(results[0][rows], wanted[0][rows])
        and torch.equal(results[1], wanted[1])
        and torch.equal(results[2], wanted[2])
    )


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_matches_token_by_token(heads):
    inputs = case(make_dims(*heads, K=128, V=128), RAGGED)
    check(inputs, prefill(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_dtypes(dtype):
    inputs = case(make_dims(4, 12, K=128, V=128), RAGGED, dtype)
    check(inputs, prefill(*inputs))


@pytest.mark.parametrize(("K", "V"), SIZES)
def test_other_head_sizes(K, V):
    inputs = case(make_dims(2, 6, K=K, V=V), RAGGED)
    check(inputs, prefill(*inputs))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 4096])
def test_lengths(length):
    inputs = case(make_dims(2, 4, K=128, V=128), [Row(length, read=2, write=3)])
    check(inputs, prefill(*inputs))


@pytest.mark.parametrize("length", [1, 64, 1000, 8192, 32_768])
def test_a_call_takes_no_more_than_it_declares(length):
    packed, weights, conv, state, step, dims = case(make_dims(16, 32, K=128, V=128), [Row(length, read=2, write=3)])
    out = torch.empty(packed.shape[0], dims.num_value_heads * dims.value_dim, dtype=packed.dtype, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gdn_prefill(packed, weights, conv, state, step.prefill, dims, out)
    declared = 64 << 20 if length > 8192 else gdn_workspace.WORKSPACE_BYTES + gdn_workspace.APART_BYTES
    assert torch.cuda.max_memory_allocated() - before <= declared


def test_sixty_four_sequences_of_any_length():
    lengths = torch.randint(0, 200, (64,), generator=torch.Generator().manual_seed(5)).tolist()
    prompts = [Row(n, start=5 * (i % 2), read=i if i % 2 else -1, write=i) for i, n in enumerate(lengths)]
    inputs = case(make_dims(1, 2, K=128, V=128), prompts, num_slots=65)
    check(inputs, prefill(*inputs))


def test_a_bfloat16_state_is_rounded_once():
    inputs = case(make_dims(4, 8, K=128, V=128), RAGGED, state_dtype=torch.bfloat16)
    check(inputs, prefill(*inputs), state_limit=6e-3)


GATES = {
    "no decay": (-30.0, 0.0, 0.0),
    "nearly none": (-13.8, 0.0, 0.0),
    "all is forgotten": (2.7, 100.0, 0.0),
    "softplus is linear": (0.0, 30.0, 0.0),
    "no write": (0.0, 0.0, -100.0),
    "the old value is replaced": (-30.0, 0.0, 100.0),
}


@pytest.mark.parametrize(("A_log", "a", "b"), GATES.values(), ids=GATES)
def test_extreme_gates(A_log, a, b):
    packed, weights, conv, state, step, dims = case(make_dims(2, 4, K=128, V=128), [Row(1000, read=1, write=1)])
    packed[:, dims.b_offset : dims.a_offset] = b
    packed[:, dims.a_offset : dims.a_offset + dims.num_value_heads] = a
    weights = replace(weights, A_log=torch.full_like(weights.A_log, A_log))
    inputs = packed, weights, conv, state, step, dims
    check(inputs, prefill(*inputs), out_limit=SLOW_OUT, state_limit=SLOW_STATE)


@pytest.mark.parametrize("kind", HARD)
def test_hard_inputs(kind):
    """Those of the torch forms: gates that alternate or wipe, no queries, keys of any length and likeness."""
    dims = make_dims(2, 6, K=128, V=128)
    step = make_step([Row(1, read=2, write=2)], [Row(90, read=4, write=4), Row(40, write=1)], padding=1)
    packed, weights, conv, state = make_inputs(dims, step.num_tokens + 1, 6, torch.bfloat16)
    weights.conv.zero_()
    weights.conv[:, -1] = 1.0  # q, k and v are silu of the rows of packed
    HARD[kind](packed, weights, dims)
    inputs = (*(moved(x, "cuda") for x in (packed, weights, conv, state, step)), dims)
    slow = kind in ("identical keys", "correlated keys", "short keys", "no decay", "faint decay")
    check(inputs, prefill(*inputs), SLOW_OUT if slow else OUT, SLOW_STATE if slow else STATE)


def test_states_of_any_size():
    packed, weights, conv, state, step, dims = case(make_dims(2, 6, K=128, V=128), [Row(200, read=4, write=4)])
    inputs = packed, weights, conv, state * 1e3, step, dims
    check(inputs, prefill(*inputs))


def test_the_largest_inputs_stay_finite_and_right():
    """Of bfloat16, in every column but z: q, k and v of one size, gates that open and shut at once."""
    dims = make_dims(2, 4, K=128, V=128)
    packed, weights, conv, state, step, dims = case(dims, [Row(100, read=1, write=1)])
    weights.conv.zero_()
    weights.conv[:, -1] = 1.0
    for columns in (packed[:-2, : dims.conv_channels], packed[:-2, dims.b_offset :]):
        columns.copy_(columns.sign() * torch.finfo(torch.bfloat16).max)
    out, _, after = prefill(packed, weights, conv, state, step, dims)
    decoded = torch.empty_like(out)
    gdn_decode(packed, weights, conv.clone(), state_after := state.clone(), step.decode, dims, decoded)
    wanted, _, _ = expected(packed, weights, conv, state, step, dims)
    assert after[1].isfinite().all() and state_after[8].isfinite().all()
    assert relative_error(out[1:101], wanted[1:101]) < OUT
    assert relative_error(decoded[:1], wanted[:1]) < OUT


@pytest.mark.parametrize("at", [5, 63, 64, 199])
def test_one_token_that_wipes_the_state(at):
    packed, weights, conv, state, step, dims = case(make_dims(2, 4, K=128, V=128), [Row(200, read=1, write=1)])
    a = slice(dims.a_offset, dims.a_offset + dims.num_value_heads)
    packed[:, a] = -8.0
    packed[1 + at, a] = 60.0
    inputs = packed, weights, conv, state, step, dims
    check(inputs, prefill(*inputs))


def rule_inputs(T, H, HV, K, V, seed=0):
    r = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=r, device="cuda")

    q, k, v = normal(T, H, K).bfloat16(), normal(T, H, K), normal(T, HV, V).bfloat16()
    g, beta = -0.02 * torch.rand(T, HV, generator=r, device="cuda"), torch.sigmoid(normal(T, HV))
    return q, k, v, g, beta, normal(2, HV, V, K)


def parallel(k, cosine):
    base = torch.nn.functional.normalize(k[:1], dim=-1)
    return cosine**0.5 * base + (1 - cosine) ** 0.5 * torch.nn.functional.normalize(k, dim=-1)


KEYS = {
    "zero": lambda k: k * 0,
    "tiny": lambda k: k * 1e-4,
    "large": lambda k: k * 1e4,
    "all the same": lambda k: k[:1].expand_as(k),
    "orthogonal": lambda k: torch.eye(128, device=k.device)[torch.arange(len(k)) % 128, None].expand_as(k),
    "cosine 0.5": lambda k: parallel(k, 0.5),
    "cosine 0.9": lambda k: parallel(k, 0.9),
    "cosine 0.99": lambda k: parallel(k, 0.99),
    "positive": lambda k: k.abs(),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_the_rule_alone_with_keys_of_every_kind(keys):
    q, k, v, g, beta, state = rule_inputs(512, 2, 4, 128, 128)
    k = keys(k).bfloat16().contiguous()
    step, out = moved(make_step([], [Row(512, read=1, write=1)]), "cuda"), torch.empty_like(v)
    wanted, after = rule_in_float64(q, k, v, g, beta, state[1])
    gated_delta_rule_chunked(q, k, v, g, beta, state, step.prefill, out)
    assert relative_error(out, wanted) < RULE_OUT
    assert relative_error(state[1], after) < RULE_STATE


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e3, 1e15])
def test_values_of_any_size(size):
    q, k, v, g, beta, state = rule_inputs(200, 2, 4, 128, 128)
    k, v, state = k.bfloat16(), (v.float() * size).bfloat16(), state * 0
    step, out = moved(make_step([], [Row(200, read=-1, write=1)]), "cuda"), torch.empty_like(v)
    wanted, after = rule_in_float64(q, k, v, g, beta, state[1])
    gated_delta_rule_chunked(q, k, v, g, beta, state, step.prefill, out)
    assert out.isfinite().all()
    assert relative_error(out, wanted) < RULE_OUT
    assert relative_error(state[1], after) < RULE_STATE


def test_a_long_prompt_in_constant_memory():
    """131072 tokens; the second half goes on where the first ended, and its last chunk ends as it should."""
    dims = make_dims(2, 4, K=128, V=128)
    inputs = case(dims, [Row(131_072 + 7, read=2, write=3)], decodes=0)
    packed, weights, conv, state, step, _ = inputs
    out = torch.empty(packed.shape[0], dims.num_value_heads * dims.value_dim, dtype=packed.dtype, device="cuda")
    packed_once, pools = packed.clone(), (conv.clone(), state.clone())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gdn_prefill(packed_once, weights, *pools, step.prefill, dims, out)
    assert torch.cuda.max_memory_allocated() - before <= gdn_workspace.WORKSPACE_BYTES + (2 << 20)
    first = moved(make_step([], [Row(65_536, read=2, write=3)]), "cuda")
    second = moved(make_step([], [Row(65_536 + 7, start=65_536, read=3, write=3)]), "cuda")
    half, *pools_half = prefill(packed[:65_536], weights, conv, state, first, dims)
    rest, *pools_half = prefill(packed[65_536:-2], weights, *pools_half, second, dims)
    assert torch.equal(torch.cat([half, rest]), out[:-2])
    assert torch.equal(pools_half[1], pools[1])


def test_more_programs_than_a_grid_axis_and_more_elements_than_32_bits():
    """2100 sequences of 32 heads; 600 000 tokens of 32 heads of 128."""
    dims = make_dims(16, 32, K=128, V=128)
    prompts = [Row(1, write=i) for i in range(2100)]
    inputs = case(dims, prompts, decodes=0, num_slots=2101)
    out, _, state = prefill(*inputs)
    alone = moved(make_step([], [Row(1, write=0)]), "cuda")
    single = prefill(inputs[0][2099:2100], *inputs[1:4], alone, dims)
    assert torch.equal(out[2099], single[0][0])
    assert torch.equal(state[2099], single[2][0])
    del inputs, out, state

    length, count = 8000, 75
    small = case(dims, [Row(length, write=0)], decodes=0, num_slots=count)
    packed = torch.cat([small[0][:length]] * count)
    step = moved(make_step([], [Row(length, write=i) for i in range(count)]), "cuda")
    assert packed.shape[0] * 4096 > 2**31
    out, _, state = prefill(packed, *small[1:4], step, dims)
    wanted = prefill(*small)
    assert torch.equal(out[-length:], wanted[0][:length])
    assert torch.equal(state[count - 1], wanted[2][0])


def test_slots_beyond_the_reach_of_32_bits():
    dims = make_dims(16, 32, K=128, V=128)
    packed, weights, conv, state, _, _ = case(dims, [Row(70, read=0)], decodes=0, num_slots=1)
    pool = torch.zeros(4098, *state.shape[1:], device="cuda")
    conv_pool = torch.zeros(4098, *conv.shape[1:], dtype=conv.dtype, device="cuda")
    pool[4097], conv_pool[4097] = state[0], conv[0]
    high = moved(make_step([], [Row(70, read=4097, write=4096)]), "cuda")
    out = torch.empty(packed.shape[0], 4096, dtype=packed.dtype, device="cuda")
    gdn_prefill(packed, weights, conv_pool, pool, high.prefill, dims, out)
    wanted = prefill(packed, weights, conv, state, moved(make_step([], [Row(70, read=0, write=0)]), "cuda"), dims)
    assert torch.equal(out[:70], wanted[0][:70])
    assert torch.equal(pool[4096], wanted[2][0]) and torch.equal(conv_pool[4096], wanted[1][0])
    assert not pool[:4096].any()


def forget():
    for function in (gdn_chunked._constants, gdn_chunked._mixer, gdn_chunked._rule_alone):
        function.cache_clear()


@pytest.mark.parametrize("others", [[], [Row(70, write=4)]], ids=["alone", "in company"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_a_prompt_of_many_slabs_in_place(heads, others, monkeypatch):
    """Alone, each slab is prepared while the one before is scanned: the same bits as one slab after the other."""
    dims = make_dims(*heads, K=128, V=128)
    inputs = case(dims, [Row(64 * 37 + 5, read=2, write=3), *others], decodes=1)
    rows = slice(1, inputs[4].num_tokens)
    first = prefill(*inputs)
    if heads[1] <= 4:  # the definition takes its time
        check(inputs, first)
    chunk = heads[1] * (64 * (128 + 64) * 2 + 4 * (2 * 64 + 4))
    monkeypatch.setattr(gdn_workspace, "APART_BYTES", 0)
    monkeypatch.setattr(gdn_slabs, "_BESIDE", 2)
    for chunks in (4, 7, 16, 60):
        monkeypatch.setattr(gdn_workspace, "WORKSPACE_BYTES", 8 * heads[1] * 128 * 128 + chunks * chunk)
        forget()
        for _ in range(10):
            assert same(prefill(*inputs), first, rows)
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("heads", [(16, 32), (16, 16), (1, 3)], ids=str)
def test_nothing_but_its_own_inputs_changes_a_bit(heads, monkeypatch):
    """Neither repeats, nor how V is cut, nor slabs, nor what memory held before, nor neighbours and their order."""
    dims = make_dims(*heads, K=128, V=128)
    inputs = case(dims, RAGGED, decodes=0)
    rows = slice(0, inputs[4].num_tokens)
    first = prefill(*inputs)
    for _ in range(200):
        assert same(prefill(*inputs), first, rows)
    for choose in gdn_chunked.CHOICES:
        assert same(prefill(*inputs, choose=choose), first, rows)

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(255))  # bytes: NaN in every type
    assert same(prefill(*inputs), first, rows)
    monkeypatch.undo()
    for name in ("WORKSPACE_BYTES", "APART_BYTES"):  # a slab for each chunk; q and k in place of inputs
        with monkeypatch.context() as patch:
            patch.setattr(gdn_workspace, name, 0)
            forget()
            assert same(prefill(*inputs), first, rows)
    forget()

    target = current_target()
    for multiprocessors in (1, 30, 2 * target.multiprocessors):
        with monkeypatch.context() as patch:
            other = target._replace(multiprocessors=multiprocessors)
            patch.setattr(gdn_chunked, "current_target", lambda other=other: other)
            assert same(prefill(*inputs), first, rows)

    packed, weights, conv, state, _, _ = inputs
    begin = 0
    for prompt in RAGGED:
        mine = slice(begin, begin + prompt.length)
        begin += prompt.length
        if prompt.length:
            alone = moved(make_step([], [prompt]), "cuda")
            out, conv_after, state_after = prefill(packed[mine], weights, conv, state, alone, dims)
            assert torch.equal(out, first[0][mine])
            assert torch.equal(conv_after[prompt.write], first[1][prompt.write])
            assert torch.equal(state_after[prompt.write], first[2][prompt.write])


@pytest.mark.parametrize("arch", [89, 120])
def test_the_tiles_of_cards_with_less_shared_memory(arch, monkeypatch):
    """As sm_89 and sm_120 would have them, compiled for this GPU: right, and within their 99 KiB."""
    target = Target("a smaller card", arch, 99 * KIB, 128, "none")
    monkeypatch.setattr(gdn_chunked, "current_target", lambda: target)
    inputs = case(make_dims(4, 12, K=128, V=128), RAGGED)
    shape = gdn_tiles.RuleShape.of(inputs[-1], inputs[-2].prefill.chunk_length, torch.bfloat16)
    conv, prep, scan = (t.candidates(target, shape)[0] for t in (gdn_tiles._conv, gdn_tiles._prep, gdn_tiles._scan))
    with gdn_tiles._conv.using(shape, conv), gdn_tiles._prep.using(shape, prep), gdn_tiles._scan.using(shape, scan):
        packed, weights, conv, state, step = (moved(x, "meta") for x in inputs[:5])
        out = torch.empty(packed.shape[0], 12 * 128, dtype=packed.dtype, device="meta")
        with recording() as record:
            gdn_prefill(packed, weights, conv, state, step.prefill, inputs[-1], out)
        assert max(binary.metadata.shared for binary in record.binaries.values()) <= 99 * KIB
        check(inputs, prefill(*inputs))


@pytest.mark.parametrize("cut", [1, 2, 63, 64, 65, 128, 199])
def test_a_prompt_in_two_steps(cut):
    """The same as in one, to the last bit where the cut is at a multiple of the chunk length."""
    dims = make_dims(4, 8, K=128, V=128)
    packed, weights, conv, state, step, _ = case(dims, [Row(200, read=3, write=3)], decodes=0)
    whole = prefill(packed, weights, conv, state, step, dims)
    first = moved(make_step([], [Row(cut, read=3, write=4)]), "cuda")
    second = moved(make_step([], [Row(200 - cut, start=cut, read=4, write=3)]), "cuda")
    out, conv, state = prefill(packed[:cut], weights, conv, state, first, dims)
    rest, conv, state = prefill(packed[cut:200], weights, conv, state, second, dims)
    out = torch.cat([out, rest])
    assert torch.equal(conv[3], whole[1][3])
    if cut % 64:
        assert relative_error(out, whole[0][:200]) < OUT
        assert relative_error(state[3], whole[2][3]) < STATE
    else:
        assert torch.equal(out, whole[0][:200])
        assert torch.equal(state[3], whole[2][3])


def test_decoding_goes_on_where_the_prompt_ended():
    dims = make_dims(4, 12, K=128, V=128)
    packed, weights, conv, state, step, _ = case(dims, [Row(100, write=3)], decodes=0)
    whole = prefill(packed, weights, conv, state, step, dims)
    _, conv, state = prefill(packed[:99], weights, conv, state, moved(make_step([], [Row(99, write=3)]), "cuda"), dims)
    last = moved(make_step([Row(1, start=99, read=3, write=3)], []), "cuda")
    out = torch.empty(1, 12 * 128, dtype=packed.dtype, device="cuda")
    gdn_decode(packed[99:100], weights, conv, state, last.decode, dims, out)
    assert relative_error(out[0], whole[0][99]) < OUT
    assert torch.equal(conv[3], whole[1][3])
    assert relative_error(state[3], whole[2][3]) < STATE


def test_norm_of_nothing_and_large_gates():
    packed, weights, conv, state, step, dims = case(make_dims(2, 4, K=128, V=128), [Row(70, write=1)])
    packed[:, 2 * dims.num_key_heads * dims.key_dim : dims.z_offset] = 0  # v, so o is zero, too
    out, _, _ = prefill(packed, weights, conv, state, step, dims)
    assert not out[1:71].any()
    inputs = case(make_dims(2, 4, K=128, V=128), [Row(70, write=1)])
    inputs[0][:, dims.z_offset : dims.b_offset] *= 30
    check(inputs, prefill(*inputs))
