"""After the warm-up, no number of tokens or sequences asks for a binary that was not there."""

from dataclasses import replace

import pytest
import torch
from sampling_cases import HISTORY, make_edits, make_rows
from steps import Row, make_step
from test_gdn import make_inputs

from hotstart.kernels import draw, dry
from hotstart.kernels.activation import silu_mul
from hotstart.kernels.attention import paged_attention
from hotstart.kernels.attention_prepare import attention_prepare
from hotstart.kernels.edits import Masks, Records, mask_words, record
from hotstart.kernels.gdn_chunked import gdn_prefill
from hotstart.kernels.gdn_decode import gdn_decode
from hotstart.kernels.launch import Watch, recording
from hotstart.kernels.linear_skinny import add_linear, linear, norm_linear, norm_swiglu
from hotstart.kernels.moe import moe
from hotstart.kernels.moe_router import norm_router
from hotstart.kernels.norm import rms_norm
from hotstart.kernels.warm_up import warm_up

COUNTS = (1, 2, 3, 4, 16, 17, 64)
MORE_TOKENS = (4, 65, 96, 97, 257, 300)  # where experts' tiles and blocks change


def serve(space, count):
    """The ops of steps with `count` sequences of one token, and of a prompt of as many."""
    dims, dtype = space.gdn, space.activation_dtypes[0]
    step = make_step([Row(1, read=i, write=i) for i in range(count)], [], padding=count % 2)
    rows = step.token_ids.shape[0]
    packed, weights, conv, state = make_inputs(dims, rows, count, dtype)
    out = torch.empty(rows, dims.num_value_heads * dims.value_dim, dtype=dtype)
    state = state.to(space.state_dtype)
    gdn_decode(packed, weights, conv, state, step.decode, dims, out)
    for prompts in ([Row(count, write=0)], [Row(1, read=i, write=i) for i in range(count)]):
        gdn_prefill(packed, weights, conv, state, make_step([], prompts).prefill, dims, out)
    attend(space, step)
    attend(space, make_step([], [Row(count, pages=(0,) * count)], page_size=space.page_size, padding=count % 2))
    attend(space, make_step([], [Row(count, start=5000, pages=(0,) * 400)], page_size=space.page_size))
    x, weight = torch.empty(rows, space.hidden_size, dtype=dtype), torch.empty(space.hidden_size, dtype=dtype)
    rms_norm(x, weight, space.eps)
    draw.sample(torch.empty(rows, space.vocab_size, dtype=dtype), make_rows([{}] * rows), HISTORY)
    pick(space, rows, step)
    multiply(space, x[:count], weight)
    for width in (*space.mlp_widths, *space.shared_widths):
        silu_mul(torch.empty(rows, 2 * width, dtype=dtype))
    mix(space, count)


def mix(space, count):
    dims, dtype = space.moe, space.activation_dtypes[0]
    step = make_step([Row(1, read=i, write=i) for i in range(count)], [], padding=count % 2)
    rows = step.token_ids.shape[0]
    x = torch.empty(rows, space.hidden_size, dtype=dtype)
    gate_up = torch.empty(dims.stacked_experts, 2 * dims.width, space.hidden_size, dtype=dtype)
    down = torch.empty(dims.stacked_experts, space.hidden_size, dims.width, dtype=dtype)
    router = torch.empty(dims.logit_width, space.hidden_size, dtype=dtype)
    moe(x, *norm_router(x, x[0], space.eps, router), gate_up, down, dims, step)


def multiply(space, x, norm):
    """What few tokens are multiplied by, joined to what stands around it; more tokens take other ways."""
    rows, D, dtype = len(x), space.hidden_size, x.dtype
    inner = space.gdn.num_value_heads * space.gdn.value_dim, space.attention.num_heads * space.attention.head_dim
    norm_linear(x, norm, space.eps, torch.empty(space.gdn.packed_width, D, dtype=dtype))
    for width in space.mlp_widths:
        norm_swiglu(x, norm, space.eps, torch.empty(2 * width, D, dtype=dtype))
    for width in space.shared_widths:
        linear(torch.empty(rows, width, dtype=dtype), torch.empty(D, width, dtype=dtype))
    for width in (*inner, *space.mlp_widths):
        add_linear(x, torch.empty(rows, width, dtype=dtype), torch.empty(D, width, dtype=dtype))
    linear(x, torch.empty(space.moe.num_experts, D, dtype=dtype))


def pick(space, rows, step):
    """A token for each row, of sequences that count their tokens, are limited to some, or both."""
    vocab, (dtype, *_) = space.vocab_size, space.activation_dtypes
    history, spans = torch.empty(rows, 64, dtype=torch.int32), ((0, 0, 0, 1),) * rows
    record(history, step.token_ids, Records(torch.tensor(spans, dtype=torch.int32), spans))
    bits = torch.empty(rows, mask_words(vocab), dtype=torch.int32)
    masks = Masks(torch.empty(rows, dtype=torch.int32), bits, (0,) * rows)
    edits = make_edits([{"row": i, "length": 3, "bias": {1: 2.0}} for i in range(rows)], masks)
    for grammar in (None, masks):
        wishes = replace(make_rows([{}] * rows), grammar=grammar, edits=edits)
        draw.sample(torch.empty(rows, vocab, dtype=dtype), wishes, history)


def attend(space, step):
    dims, rows, dtype = space.attention, step.token_ids.shape[0], space.activation_dtypes[0]
    packed, norm = torch.empty(rows, dims.packed_width, dtype=dtype), torch.empty(dims.head_dim, dtype=dtype)
    keys, values = torch.empty(2, 3, space.page_size, dims.num_kv_heads, dims.head_dim, dtype=dtype)
    queries = attention_prepare(packed, norm, norm, torch.empty(70, dims.rotary_dim), keys, values, step, dims)
    paged_attention(queries, packed, keys, values, step, dims)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_no_count_of_tokens_or_sequences_makes_a_new_binary(target, space):
    with dry.gpu(target), Watch("error") as watch:
        report = warm_up(space)
        watch.seal()
        with recording() as served:
            for count in COUNTS:
                serve(space, count)
                watch.check()
            for count in MORE_TOKENS:
                mix(space, count)
                watch.check()
    assert watch.events == []
    assert served.counts.keys() == report.keys
    assert len(set(watch.compiled)) == len(report.binaries)  # Triton 3.6 tells of a compile that is under way again


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_the_state_dtype_changes_warmed_and_served_keys_together(state_dtype, space):
    space = replace(space, state_dtype=state_dtype)
    with dry.gpu("sm_90"), Watch("error") as watch:
        warm_up(space)
        watch.seal()
        serve(space, 3)
