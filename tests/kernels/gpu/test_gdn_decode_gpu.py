"""The decode kernels at published head shapes, against the token-by-token definition in float64 on the same inputs."""

import pytest
import torch
from steps import Row, make_step, moved
from test_gdn import expected, make_dims, make_inputs
from tolerances import relative_error

from hotstart.kernels.gdn_decode import gdn_decode

HEADS = [(16, 16), (16, 32), (16, 48), (16, 64), (2, 8), (8, 24), (1, 3)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# One rounding of the output to its dtype, after float32 arithmetic on exactly the inputs of the reference.
LIMITS = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: 2e-6}


def case(heads, slots, dtype, state_dtype=torch.float32, num_slots=24, padding=1, K=128, V=128):
    dims = make_dims(*heads, K=K, V=V)
    step = make_step([Row(1, start=s, read=r, write=w) for s, (r, w) in enumerate(slots)], [], padding=padding)
    packed, weights, conv, state = make_inputs(dims, len(slots) + padding, num_slots, dtype)
    return packed, weights, conv, state.to(state_dtype), step, dims


def decode(packed, weights, conv, state, step, dims):
    """On the GPU: output, conv pool and state pool after the step."""
    packed, weights, conv, state, step = (moved(x, "cuda") for x in (packed, weights, conv, state, step))
    out = torch.full((packed.shape[0], dims.num_value_heads * dims.value_dim), float("nan"), device="cuda")
    out = out.to(packed.dtype)
    gdn_decode(packed, weights, conv, state, step.decode, dims, out)
    return out.cpu(), conv.cpu(), state.cpu()


def permuted_slots(count, num_slots=24):
    """Reads and writes: most in place, one from zero, one to another slot."""
    order = torch.randperm(num_slots, generator=torch.Generator().manual_seed(0)).tolist()
    slots = [(slot, slot) for slot in order[:count]]
    slots[0] = (-1, slots[0][1])
    if count > 1:
        slots[1] = (order[count], slots[1][1])
    return slots


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_matches_token_by_token(heads, dtype):
    slots = permuted_slots(5)
    inputs = case(heads, slots, dtype)
    inputs[2][slots[0][1]] = inputs[3][slots[0][1]] = float("nan")  # what a fresh slot held must not show
    out, conv, state = decode(*inputs)
    wanted_out, wanted_conv, wanted_state = expected(*inputs)
    written = [write for _, write in slots]
    others = [slot for slot in range(24) if slot not in written]
    assert relative_error(out[:5], wanted_out[:5]) < LIMITS[dtype]
    assert relative_error(state[written], wanted_state[written]) < 2e-6
    assert torch.equal(conv[written].double(), wanted_conv[written])
    assert torch.equal(conv[others], inputs[2][others])
    assert torch.equal(state[others], inputs[3][others])
    assert out[5:].isnan().all()


@pytest.mark.parametrize(("K", "V"), [(96, 192), (64, 48), (256, 256), (128, 64)])
def test_other_head_sizes(K, V):
    inputs = case((4, 12), permuted_slots(3), torch.bfloat16, K=K, V=V)
    out, _, state = decode(*inputs)
    wanted_out, _, wanted_state = expected(*inputs)
    written = [write for _, write in permuted_slots(3)]
    assert relative_error(out[:3], wanted_out[:3]) < LIMITS[torch.bfloat16]
    assert relative_error(state[written], wanted_state[written]) < 2e-6


def test_a_bfloat16_state_is_rounded_once():
    slots = permuted_slots(5)
    inputs = case((16, 32), slots, torch.bfloat16, torch.bfloat16)
    out, _, state = decode(*inputs)
    wanted_out, _, wanted_state = expected(*inputs)
    written = [write for _, write in slots]
    assert relative_error(out[:5], wanted_out[:5]) < LIMITS[torch.bfloat16]
    assert relative_error(state[written], wanted_state[written]) < 3e-3


def test_slots_beyond_the_reach_of_32_bits():
    """Slot 4097 of 32 heads of 128 x 128 starts after 2^31 elements."""
    dims = make_dims(16, 32, K=128, V=128)
    slots = [(4097, 4097), (-1, 4096)]
    packed, weights, conv, small, _, _ = case((16, 32), [(0, 0), (-1, 1)], torch.bfloat16, num_slots=2, padding=0)
    step = moved(make_step([Row(1, start=5, read=r, write=w) for r, w in slots], []), "cuda")
    pool = torch.zeros(4098, *small.shape[1:], device="cuda")
    conv_pool = torch.zeros(4098, *conv.shape[1:], dtype=torch.bfloat16, device="cuda")
    pool[4097], conv_pool[4097] = small[0].cuda(), conv[0].cuda()
    out = torch.empty(2, 32 * 128, dtype=torch.bfloat16, device="cuda")
    gdn_decode(packed.cuda(), moved(weights, "cuda"), conv_pool, pool, step.decode, dims, out)
    small_step = make_step([Row(1, start=5, read=0, write=0), Row(1, start=5, read=-1, write=1)], [])
    reference = decode(packed, weights, conv, small, small_step, dims)
    assert torch.equal(out.cpu(), reference[0])
    assert torch.equal(pool[[4097, 4096]].cpu(), reference[2][[0, 1]])
    assert not pool[:4096].any()


def test_two_hundred_repeats_are_equal_to_the_last_bit():
    inputs = case((16, 48), permuted_slots(17, 18), torch.bfloat16, num_slots=18)
    first = decode(*inputs)
    for _ in range(200):
        for again, before in zip(decode(*inputs), first, strict=True):
            assert torch.equal(again, before) or torch.equal(again.isnan(), before.isnan())


def test_a_row_does_not_depend_on_its_neighbours():
    slots = permuted_slots(9)
    packed, weights, conv, state, step, dims = case((16, 48), slots, torch.bfloat16)
    together = decode(packed, weights, conv, state, step, dims)
    for i, (read, write) in enumerate(slots):
        alone = make_step([Row(1, start=i, read=read, write=write)], [])
        out, _, after = decode(packed[i : i + 1], weights, conv, state, alone, dims)
        assert torch.equal(out[0], together[0][i])
        assert torch.equal(after[write], together[2][write])


def test_a_graph_replays_with_other_slots():
    packed, weights, conv, state, step, dims = case((16, 32), permuted_slots(4), torch.bfloat16, padding=0)
    wanted = decode(packed, weights, conv, state, step, dims)
    packed, weights, step = (moved(x, "cuda") for x in (packed, weights, step))
    conv_pool, state_pool = conv.cuda(), state.cuda()
    out = torch.empty(4, 32 * 128, dtype=torch.bfloat16, device="cuda")
    reads, writes = step.decode.read_slots.clone(), step.decode.write_slots.clone()
    step.decode.write_slots.fill_(-1)  # captured on padding rows, which touch nothing
    gdn_decode(packed, weights, conv_pool, state_pool, step.decode, dims, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gdn_decode(packed, weights, conv_pool, state_pool, step.decode, dims, out)
    step.decode.read_slots.copy_(reads)
    step.decode.write_slots.copy_(writes)
    graph.replay()
    assert torch.equal(out.cpu(), wanted[0])
    assert torch.equal(state_pool.cpu(), wanted[2])


def test_four_thousand_steps_stay_close():
    dims = make_dims(2, 6, K=128, V=128)
    _, weights, conv, state = make_inputs(dims, 1, 2, torch.bfloat16)
    tokens = torch.randn(4096, dims.packed_width, generator=torch.Generator().manual_seed(1)).bfloat16()
    step = moved(make_step([Row(1, start=0, read=1, write=1)], []), "cuda")
    conv_pool, state_pool, gpu_weights = conv.cuda(), state.cuda(), moved(weights, "cuda")
    rows, out = tokens.cuda(), torch.empty(1, 6 * 128, dtype=torch.bfloat16, device="cuda")
    row = torch.empty_like(rows[:1])
    for t in range(4096):
        step.decode.context_lens.fill_(t + 1)
        row.copy_(rows[t : t + 1])  # of the launch just before, only what it does to the row is waited for
        gdn_decode(row, gpu_weights, conv_pool, state_pool, step.decode, dims, out)
    prompt = make_step([], [Row(4096, read=1, write=1)])
    _, _, wanted = expected(tokens, weights, conv, state, prompt, dims)
    assert relative_error(state_pool[1].cpu(), wanted[1]) < 1e-4
