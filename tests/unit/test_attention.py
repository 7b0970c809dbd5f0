"""The torch forms of gated attention over pages, against attention written out."""

import pytest
import torch
from steps import Row, make_step
from tolerances import assert_close

from hotstart.kernels.attention import attention_prepare, attention_reference, paged_attention
from hotstart.kernels.ops import AttentionDims
from hotstart.kernels.rotary import rope_table

PAGE, POSITIONS = 4, 400
STEPS = {
    "one token": ([Row(1, start=9, pages=(3, 1, 7))], []),
    "decodes": ([Row(1, start=9, pages=(3, 1, 7)), Row(1, start=0, pages=(2,)), Row(1, start=3, pages=(5,))], []),
    "one prompt": ([], [Row(70, pages=tuple(range(20, 2, -1)))]),
    "a long prompt": ([], [Row(300, start=60, pages=tuple(range(90)))]),
    "mixed": (
        [Row(1, start=9, pages=(3, 1, 7))],
        [Row(5, pages=(2, 4)), Row(3, start=6, pages=(9, 8, 10)), Row(0), Row(9, start=4, pages=(11, 12, 13, 14))],
    ),
}


def rotate(x, positions, dims, theta=1e4):
    """Pair by pair, in float64."""
    half, y = dims.rotary_dim // 2, x.clone()
    for m in range(half):
        angle = positions.double() * theta ** (-2 * m / dims.rotary_dim)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        y[..., m] = x[..., m] * cos - x[..., half + m] * sin
        y[..., half + m] = x[..., half + m] * cos + x[..., m] * sin
    return y


def expected(packed, q_norm, k_norm, keys, values, step, dims):
    H, Hkv, D, n = dims.num_heads, dims.num_kv_heads, dims.head_dim, step.num_tokens
    packed = packed[:n].double()
    heads = packed[:, : 2 * H * D].view(n, H, 2 * D)
    k, v = (packed[:, (2 * H + i * Hkv) * D : (2 * H + (i + 1) * Hkv) * D].reshape(n, Hkv, D) for i in (0, 1))
    norm = torch.nn.functional.rms_norm
    q = rotate(norm(heads[..., :D], (D,), 1 + q_norm.double(), dims.eps), step.positions[:n], dims)
    k = rotate(norm(k, (D,), 1 + k_norm.double(), dims.eps), step.positions[:n], dims)
    keys, values = keys.double().view(-1, Hkv, D).clone(), values.double().view(-1, Hkv, D).clone()
    keys[step.kv_index[:n]], values[step.kv_index[:n]] = k, v
    rows, first = [], 0
    tables = [*step.decode.page_table[: step.decode.num_sequences], *step.prefill.page_table]
    lengths = [1] * step.decode.num_sequences + list(step.prefill.lengths)
    for table, length, context in zip(tables, lengths, [*step.decode.contexts, *step.prefill.contexts], strict=True):
        places = [int(table[p // PAGE]) * PAGE + p % PAGE for p in range(context)]
        rows.append(attention_reference(q[first : first + length], keys[places], values[places]).reshape(length, H * D))
        first += length
    return torch.cat(rows), heads[..., D:].reshape(n, H * D), keys, values


@pytest.mark.parametrize("heads", [(6, 2, 24, 8), (3, 1, 16, 16)], ids=str)
@pytest.mark.parametrize("case", STEPS)
def test_step_matches_attention_written_out(case, heads):
    H, Hkv, D, rotary = heads
    dims = AttentionDims(num_heads=H, num_kv_heads=Hkv, head_dim=D, rotary_dim=rotary, eps=1e-6)
    step = make_step(*STEPS[case], page_size=PAGE, padding=2)
    r = torch.Generator().manual_seed(0)
    packed = torch.randn(step.num_tokens + 2, 2 * (H + Hkv) * D + 5, generator=r)
    packed[step.num_tokens :] = float("nan")
    q_norm, k_norm = torch.randn(2, D, generator=r)
    keys, values = torch.randn(2, 100, PAGE, Hkv, D, generator=r)
    wanted, gates, keys_after, values_after = expected(packed, q_norm, k_norm, keys, values, step, dims)

    # Nothing but what the sequences wrote may be read: all the rest is poison.
    seen = torch.zeros(100 * PAGE, dtype=torch.bool)
    tables = [*step.decode.page_table[: step.decode.num_sequences], *step.prefill.page_table]
    for table, context in zip(tables, [*step.decode.contexts, *step.prefill.contexts], strict=True):
        seen[[int(table[p // PAGE]) * PAGE + p % PAGE for p in range(context)]] = True
    for cache, after in ((keys, keys_after), (values, values_after)):
        cache.view(-1, Hkv, D)[~seen] = float("nan")
        after[~seen] = float("nan")

    rope = rope_table(POSITIONS, rotary, 1e4, None, torch.device("cpu"))
    queries, gate = attention_prepare(packed, q_norm, k_norm, rope, keys, values, step, dims)
    out = paged_attention(queries, keys, values, step, dims)
    n = step.num_tokens
    assert_close(out[:n], wanted)
    assert torch.equal(gate[:n].double(), gates)
    assert not out[n:].any() and not queries[n:].any()
    for cache, after in ((keys, keys_after), (values, values_after)):
        torch.testing.assert_close(cache.view(-1, Hkv, D).double(), after, rtol=1e-5, atol=1e-5, equal_nan=True)
