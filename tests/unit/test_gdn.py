"""The torch forms of the Gated DeltaNet mixer against its token-by-token definition."""

import pytest
import torch
from steps import Row, make_step
from tolerances import assert_close

from hotstart.kernels.gdn import gdn_decode, gdn_prefill, gdn_reference
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
    conv = normal(num_slots, dims.conv_width - 1, dims.conv_channels).to(dtype)
    state = normal(num_slots, HV, dims.value_dim, dims.key_dim)
    return packed, weights, conv, state


def expected(packed, weights, conv, state, step, dims):
    """Row by row with the reference: the output, and pools after the step."""
    out = torch.zeros(packed.shape[0], dims.num_value_heads * dims.value_dim, dtype=torch.float64)
    conv_after, state_after = conv.double(), state.double()
    d, p = step.decode, step.prefill
    rows = [(i, 1, d.reads[i], d.writes[i]) for i in range(d.num_sequences)]
    first = p.first_token
    for length, read, write in zip(p.lengths, p.reads, p.writes, strict=True):
        rows.append((first, length, read, write))
        first += length
    for first, length, read, write in rows:
        c = conv[read] if read >= 0 else torch.zeros_like(conv[0])
        s = state[read] if read >= 0 else torch.zeros_like(state[0])
        y, c, s = gdn_reference(packed[first : first + length], weights, c, s, dims)
        out[first : first + length], conv_after[write], state_after[write] = y, c, s
    return out, conv_after, state_after


def run(packed, weights, conv, state, step, dims):
    out = torch.zeros(packed.shape[0], dims.num_value_heads * dims.value_dim, dtype=packed.dtype)
    conv, state = conv.clone(), state.clone()
    gdn_decode(packed, weights, conv, state, step.decode, dims, out)
    gdn_prefill(packed, weights, conv, state, step.prefill, dims, out)
    return out, conv, state


STEPS = {
    "one token": ([Row(1, read=1, write=1)], []),
    "a first token": ([Row(1, read=-1, write=1)], []),
    "decodes": ([Row(1, read=s, write=s) for s in (4, 0, 2)], []),
    "one prompt": ([], [Row(65, write=1)]),
    "ragged prompts": ([], [Row(1, write=1), Row(63, read=2, write=2), Row(0, read=3, write=3), Row(130, write=0)]),
    "mixed": ([Row(1, read=3, write=3), Row(1, write=5)], [Row(3, read=0, write=4), Row(64, write=1)]),
}


@pytest.mark.parametrize("heads", [(2, 6), (3, 3), (1, 2)], ids=str)
@pytest.mark.parametrize("case", STEPS)
def test_step_matches_token_by_token(case, heads):
    dims = make_dims(*heads)
    decodes, prefills = STEPS[case]
    step = make_step(decodes, prefills, padding=2)
    inputs = make_inputs(dims, step.num_tokens + 2, 6)
    for actual, wanted in zip(run(*inputs, step, dims), expected(*inputs, step, dims), strict=True):
        assert_close(actual, wanted)


def test_low_precision_rounds_only_at_the_ends():
    """Activations in bfloat16, arithmetic in float32; states may be bfloat16, too."""
    dims = make_dims()
    step = make_step([Row(1, read=3, write=3)], [Row(70, write=1), Row(5, read=0, write=0)], chunk_length=32)
    packed, weights, conv, state = make_inputs(dims, step.num_tokens, 6, torch.bfloat16)
    wanted = expected(packed, weights, conv, state, step, dims)
    for state_dtype in (torch.float32, torch.bfloat16):
        state = state.to(state_dtype)
        wanted = expected(packed, weights, conv, state, step, dims)
        for actual, exact in zip(run(packed, weights, conv, state, step, dims), wanted, strict=True):
            assert_close(actual, exact)
