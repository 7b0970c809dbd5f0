"""A request is the same alone, in a batch, chunked any way, and preempted: logits within 1e-4, and the same tokens.

A token may differ only where arithmetic noise decides: the two best logits, or a draw and the boundary it falls on,
are closer than 1e-3.  Such cases are counted and must be rare; what follows one is checked by teacher forcing.
"""

import random

import pytest
import torch
from tiny import VOCAB

from hotstart.engine.device import CpuDevice
from hotstart.kernels.sampling import uniform
from hotstart.request import Request, SamplingParams

LOGIT_TOLERANCE, NEAR_TIE, MOST_TIES = 1e-4, 1e-3, 0.02
ANSWER = 40
LENGTHS = (1, 2, 3, 15, 16, 17, 40, 63, 64, 65, 72, 80)
MODES = {  # wishes, steps in flight, pages
    "batch": ({"max_num_seqs": 8, "max_num_batched_tokens": 200}, 1, None),
    "chunks of 7": ({"max_num_seqs": 3, "max_num_batched_tokens": 7}, 1, None),
    "chunks of 64": ({"max_num_seqs": 8, "max_num_batched_tokens": 70}, 2, None),
    "preempted": ({"max_num_seqs": 8, "max_num_batched_tokens": 50}, 2, 9),
}


def make_requests():
    dice = random.Random(3)
    requests = []
    for seed, length in enumerate(LENGTHS, start=1):
        params = SamplingParams(
            temperature=0.0 if seed % 2 else 0.8,
            top_k=(0, 20)[seed % 3 == 0],
            top_p=(1.0, 0.9)[seed % 4 == 0],
            seed=seed,
            max_tokens=ANSWER,
            ignore_eos=True,
            prompt_logprobs=1 if seed % 5 == 0 else None,
        )
        requests.append(Request(f"r{seed}", tuple(dice.choices(range(VOCAB), k=length)), params, 0.0))
    return requests


def serve(engine, requests):
    """Tokens and prompt log-probabilities of each request."""
    tokens, prompts = {request.id: () for request in requests}, {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            assert event.error is None
            tokens[event.request_id] += event.token_ids
            if event.prompt_logprobs:
                prompts[event.request_id] = [p and p.logprob for p in event.prompt_logprobs]
    return tokens, prompts


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_neighbours_chunks_and_preemption_change_nothing(family, start_engine, few_pages, seen_logits, monkeypatch):
    requests = make_requests()
    alone = start_engine(family, max_model_len=128, max_num_seqs=1, max_num_batched_tokens=128)
    expected = [serve(alone, [request]) for request in requests]
    reference = dict(seen_logits)

    for name, (wishes, flights, pages) in MODES.items() if family == "dense" else [("batch", MODES["batch"])]:
        seen_logits.clear()
        monkeypatch.setattr(CpuDevice, "flights", flights)
        few_pages(pages)
        engine = start_engine(family, max_model_len=128, **wishes)
        seen_logits.clear()
        tokens, prompts = serve(engine, requests)
        assert pages is None or engine._scheduler.num_preemptions > 0, "nothing was preempted"
        found, ties = dict(seen_logits), 0
        for request, (wanted, wanted_prompts) in zip(requests, expected, strict=True):
            mine, theirs = tokens[request.id], wanted[request.id]
            assert len(mine) == len(theirs) == ANSWER
            same = next((i for i in range(ANSWER) if mine[i] != theirs[i]), ANSWER)
            positions = [len(request.prompt_token_ids) + i for i in range(min(same + 1, ANSWER))]
            for position in positions:
                key = (request.params.seed, position)
                assert_close(found[key], reference[key], name)
            if same < ANSWER:
                ties += 1
                assert distance(reference[request.params.seed, positions[-1]], request.params, positions[-1]) < NEAR_TIE
                ties += forced(engine, request, theirs, same + 1, reference, seen_logits)
            if request.id in wanted_prompts:
                assert prompts[request.id][1:] == pytest.approx(wanted_prompts[request.id][1:], abs=LOGIT_TOLERANCE)
        forced(engine, requests[3], expected[3][0][requests[3].id], 0, reference, seen_logits)
        assert ties <= MOST_TIES * ANSWER * len(requests), f"{name}: {ties} near ties"
        engine.check()


def assert_close(found, wanted, name):
    worst = (found - wanted).abs().max().item()
    assert worst < LOGIT_TOLERANCE, f"{name}: logits differ by {worst:.2g}"


def forced(engine, request, answer, start, reference, seen_logits):
    """Let the engine choose each token after the given ones, as if it had chosen them; counts the near ties."""
    ties = 0
    for i in range(start, ANSWER):
        prompt = request.prompt_token_ids + answer[:i]
        params = SamplingParams(
            **{name: getattr(request.params, name) for name in ("temperature", "top_k", "top_p", "seed")}, max_tokens=1
        )
        tokens, _ = serve(engine, [Request("forced", prompt, params, 0.0)])
        key = (request.params.seed, len(prompt))
        assert_close(seen_logits[key], reference[key], "forced")
        if tokens["forced"] != answer[i : i + 1]:
            assert distance(reference[key], params, len(prompt)) < NEAR_TIE
            ties += 1
    return ties


def distance(logits, params, position):
    """How far noise would have to move something before another token came out: logits, or probability."""
    top = logits.topk(2).values
    if params.temperature == 0.0:
        return (top[0] - top[1]).item()
    probs, order = (logits / params.temperature).softmax(-1).double().sort(descending=True, stable=True)
    before = probs.cumsum(0) - probs
    count = params.top_k or VOCAB
    kept = (torch.arange(VOCAB) < count) & (before < params.top_p * probs[:count].sum())
    total = torch.zeros(VOCAB, dtype=torch.double).scatter_(0, order, probs * kept).cumsum(0)
    draw = uniform(torch.tensor([params.seed]), torch.tensor([position]))[0] * total[-1]
    gaps = [(total - draw).abs().min(), (before - params.top_p * probs[:count].sum()).abs().min()]
    if params.top_k:
        gaps.append(probs[count - 1] - probs[count])
    return min(gaps).item()
