"""The attention kernels at published head shapes, against attention written out in float64 on the same inputs."""

from dataclasses import replace

import pytest
import torch
from attention_cases import assert_matches, make_case, run
from steps import moved
from tolerances import relative_error

from hotstart.kernels import attention_decode, attention_prefill
from hotstart.kernels.attention import paged_attention
from hotstart.kernels.attention_prepare import attention_prepare
from hotstart.kernels.ops import AttentionDims

HEADS = {  # heads, key heads, head_dim, rotary_dim
    "4b": AttentionDims(16, 4, 256, 64, 1e-6),
    "27b": AttentionDims(24, 4, 256, 64, 1e-6),
    "122b": AttentionDims(32, 2, 256, 64, 1e-6),
    "other": AttentionDims(10, 2, 96, 96, 1e-6),
}
STEPS = {  # decodes, prefills: length and tokens before
    "decodes": ([(1, context - 1) for context in (1, 15, 16, 17, 255, 256, 257, 513, 3000, 9000)], []),
    "prompts": ([], [(1, 0), (63, 0), (64, 0), (0, 0), (65, 30), (400, 0), (130, 700)]),
    "mixed": ([(1, 700), (1, 3)], [(5, 0), (200, 31), (33, 500)]),
}
# Queries, keys and probabilities are rounded to the dtype on the way.
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("dims", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", STEPS)
def test_step_matches_attention_written_out(name, dims, dtype):
    case = make_case(*STEPS[name], dims, dtype, num_pages=900)
    out, keys, values = run(case, attention_prepare, paged_attention, "cuda")
    n = case.inputs[6].num_tokens
    assert relative_error(out[:n], case.out[:n]) < LIMITS[dtype]
    assert_matches(case, (out, keys, values), factor=4)


@pytest.mark.parametrize(
    ("heads", "dtype", "page_size"),
    [("4b", torch.bfloat16, 16), ("4b", torch.float16, 32), ("27b", torch.bfloat16, 16), ("122b", torch.bfloat16, 64)],
    ids=str,
)
def test_warps_with_roles_change_not_a_bit(heads, dtype, page_size, monkeypatch):
    """On Hopper; elsewhere there is one form.  Contexts end within pages, whose last rows are no numbers."""
    many = [], [(1200, 0), (64, 0), (500, 900), (0, 0), (700, 0)]
    pages = {"page_size": page_size, "num_pages": 900}
    cases = [make_case(*step, HEADS[heads], dtype, **pages) for step in (STEPS["prompts"], STEPS["mixed"], many)]
    found = [run(case, attention_prepare, paged_attention, "cuda")[0] for case in cases]
    monkeypatch.setattr(attention_prefill, "hopper_serves", lambda *_: False)
    for case, out in zip(cases, found, strict=True):
        assert torch.equal(run(case, attention_prepare, paged_attention, "cuda")[0], out)


@pytest.mark.parametrize("name", STEPS)
def test_a_sequence_does_not_depend_on_its_neighbours(name):
    """Nor do two runs differ."""
    dims = HEADS["27b"]
    packed, q_norm, k_norm, rope, keys, values, step, _ = make_case(
        *STEPS[name], dims, torch.bfloat16, num_pages=900
    ).inputs
    inputs = [moved(x, "cuda") for x in (q_norm, k_norm, rope, keys.nan_to_num(), values.nan_to_num())]

    def attend(packed, step):
        queries = attention_prepare(packed.cuda(), *inputs, moved(step, "cuda"), dims)
        return paged_attention(queries, packed.cuda(), *inputs[3:], moved(step, "cuda"), dims)

    together = attend(packed, step)
    assert torch.equal(attend(packed, step), together)
    decodes, prefills = STEPS[name]
    first = 0
    for i, (length, _) in enumerate([*decodes, *prefills]):
        alone = one_sequence(step, i, first, length)
        if length:
            assert torch.equal(attend(packed[first : first + length].clone(), alone), together[first : first + length])
        first += length


def one_sequence(step, i, first, length):
    """The step with sequence i alone."""
    decode, prefill, n = step.decode, step.prefill, step.decode.num_sequences
    rows, tokens = slice(i, i + 1), slice(first, first + length)
    none = {"num_sequences": 0}
    if i < n:
        decode = replace(
            decode, num_sequences=1, page_table=decode.page_table[rows], context_lens=decode.context_lens[rows]
        )
        prefill = replace(prefill, **none, page_table=prefill.page_table[:0])
    else:
        rows = slice(i - n, i - n + 1)
        prefill = replace(
            prefill, num_sequences=1, first_token=0, page_table=prefill.page_table[rows],
            context_lens=prefill.context_lens[rows].clone(), cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        )  # fmt: skip
        decode = replace(decode, **none, page_table=decode.page_table[:0])
    return replace(
        step, num_tokens=length, positions=step.positions[tokens].clone(), kv_index=step.kv_index[tokens].clone(),
        decode=moved(decode, "cpu"), prefill=moved(prefill, "cpu"),
    )  # fmt: skip


def test_a_graph_replays_with_other_pages_and_contexts():
    dims = HEADS["4b"]
    case = make_case([(1, 40), (1, 2000), (1, 0)], [], dims, torch.bfloat16, num_pages=200)
    wanted, keys_after, _ = run(case, attention_prepare, paged_attention, "cuda")
    packed, q_norm, k_norm, rope, keys, values, step, _ = (moved(x, "cuda") for x in case.inputs)
    filled = [t.clone() for t in (step.positions, step.kv_index, step.decode.page_table, step.decode.context_lens)]
    step.kv_index.fill_(-1)  # captured on padding rows, which touch nothing
    step.decode.context_lens.fill_(0)

    def attend():
        queries = attention_prepare(packed, q_norm, k_norm, rope, keys, values, step, dims)
        return paged_attention(queries, packed, keys, values, step, dims)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    graph.replay()
    assert not out.any()
    assert torch.equal(keys.cpu().isnan(), case.inputs[4].isnan())
    for tensor, values_ in zip(
        (step.positions, step.kv_index, step.decode.page_table, step.decode.context_lens), filled, strict=True
    ):
        tensor.copy_(values_)
    graph.replay()
    assert torch.equal(out.cpu(), wanted)
    assert torch.equal(keys.cpu().view(keys_after.shape).nan_to_num(), keys_after.nan_to_num())


def test_pages_beyond_the_reach_of_32_bits():
    """Page 140000 of 4 heads of 256 starts after 2^31 elements."""
    dims = HEADS["4b"]
    case = make_case([(1, 300)], [(40, 10)], dims, torch.bfloat16, num_pages=40)
    wanted, *_ = run(case, attention_prepare, paged_attention, "cuda")
    packed, q_norm, k_norm, rope, keys, values, step, _ = (moved(x, "cuda") for x in case.inputs)
    pools = [torch.empty(140_040, *keys.shape[1:], dtype=keys.dtype, device="cuda") for _ in range(2)]
    for pool, small in zip(pools, (keys, values), strict=True):
        pool[140_000:] = small
    step.kv_index.add_(140_000 * 16 * (step.kv_index >= 0))
    step.decode.page_table.add_(140_000)
    step.prefill.page_table.add_(140_000)
    queries = attention_prepare(packed, q_norm, k_norm, rope, *pools, step, dims)
    assert torch.equal(paged_attention(queries, packed, *pools, step, dims).cpu(), wanted)


def test_slabs_of_sequences_change_nothing(monkeypatch):
    dims = HEADS["122b"]
    case = make_case([(1, 37 * i) for i in range(1, 24)] + [(1, 5000)], [], dims, torch.bfloat16, num_pages=1100)
    together, *_ = run(case, attention_prepare, paged_attention, "cuda")
    monkeypatch.setattr(attention_decode, "WORKSPACE_BYTES", 1 << 20)
    slabs, *_ = run(case, attention_prepare, paged_attention, "cuda")
    assert torch.equal(together, slabs)
