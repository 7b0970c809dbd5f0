"""Sampling over a published vocabulary: the draws of the torch form, and nothing waits for the device."""

import pytest
import torch
from sampling_cases import HISTORY, disagreements, make_rows
from steps import moved
from waits import no_waits

from hotstart.kernels import draw
from hotstart.kernels.sampling import sample_torch, token_logprobs

SETTINGS = (
    {"temperature": 0.0}, {}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, {"top_k": 1}, {"top_k": 4000},
    {"top_k": 100_000, "top_p": 0.5}, {"top_p": 0.8}, {"top_p": 0.9999, "temperature": 5.0}, {"top_k": 50},
    {"temperature": 0.01}, {"top_p": 1e-6}, {"top_k": 5, "banned": (7, 8, 9)},
    {"min_p": 0.1}, {"min_p": 0.02, "top_k": 40, "top_p": 0.9}, {"min_p": 1e-3, "top_p": 0.8},
)  # fmt: skip


def case(dtype, vocab, repeats, scale=2.0):
    wishes = [s | {"seed": 7 * i - 50, "position": i} for i, s in enumerate(SETTINGS * repeats)]
    logits = torch.randn(len(wishes), vocab, generator=torch.Generator().manual_seed(0)) * scale
    return logits.to(dtype), wishes


@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
@pytest.mark.parametrize(("dtype", "vocab"), [(torch.bfloat16, 248320), (torch.float32, 151936), (torch.float16, 1001)])
def test_draws_are_those_of_the_torch_form(dtype, vocab, scale):
    logits, wishes = case(dtype, vocab, 3, scale)
    tokens = draw.sample(logits.cuda(), moved(make_rows(wishes), "cuda"), HISTORY.cuda()).cpu()
    assert disagreements(logits, make_rows(wishes), tokens) == []
    again = draw.sample(logits[5:9].cuda().clone(), moved(make_rows(wishes[5:9]), "cuda"), HISTORY.cuda()).cpu()
    assert torch.equal(again, tokens[5:9])


@pytest.mark.parametrize("sample", [draw.sample, sample_torch])
def test_nothing_waits_for_the_device(sample):
    logits, wishes = case(torch.bfloat16, 5000, 1)
    logits, rows, history = logits.cuda(), moved(make_rows(wishes), "cuda"), HISTORY.cuda()
    last, slots = torch.zeros(40, dtype=torch.int32, device="cuda"), torch.arange(len(wishes), device="cuda")
    sample(logits, rows, history)
    torch.cuda.synchronize()
    with no_waits():
        tokens = sample(logits, rows, history)
        token_logprobs(logits, tokens, 20)
        last.index_copy_(0, slots, tokens.int())
        taken = last[slots.int()]
        taken.copy_(torch.where(taken < 0, taken, last[: len(wishes)]))
