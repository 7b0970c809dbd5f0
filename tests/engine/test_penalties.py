"""Penalties, biases, bans and allowed tokens in a serving engine: every token is the one that plain formulas choose.

They see all tokens before, those in flight too: with two steps under way, with prompts in pieces, after a preemption,
and where the beginning of a prompt was cached.
"""

import random
from collections import defaultdict

import pytest
import torch
from tiny import VOCAB

from hotstart.engine.device import CpuDevice
from hotstart.request import Request, SamplingParams

MODES = {  # wishes, steps in flight, pages
    "one by one": ({"max_num_seqs": 1}, 1, None),
    "overlapped": ({"max_num_seqs": 6}, 2, None),
    "in pieces, preempted": ({"max_num_seqs": 6, "max_num_batched_tokens": 20}, 2, 8),
    "cached": ({"max_num_seqs": 6, "enable_prefix_caching": True}, 2, None),
}
WORDS = ((5,), (6, 7), (100, 101, 102))


@pytest.fixture(scope="module")
def answers_of_modes():
    return {}


def make_requests():
    dice = random.Random(1)
    shared = tuple(dice.choices(range(VOCAB), k=64))
    requests = []
    for seed in range(1, 21):
        likely = dice.sample(range(VOCAB), 8)
        params = SamplingParams(
            temperature=dice.choice((0.0, 0.0, 0.7)),
            seed=seed,
            min_p=dice.choice((0.0, 0.3)),
            repetition_penalty=dice.choice((1.0, 1.0, 1.5, 0.8)),
            presence_penalty=dice.choice((0.0, 1.0, -1.0)),
            frequency_penalty=dice.choice((0.0, 0.5)),
            logit_bias=dice.choice((None, {token: dice.uniform(2, 6) for token in likely})),
            bad_word_ids=dice.choice(((), WORDS, tuple((a, b) for a in likely for b in likely))),
            allowed_token_ids=dice.choice((None, None, tuple(likely), (5, 6, 7))),
            min_tokens=dice.choice((0, 4)),
            max_tokens=dice.choice((10, 28)),
        )
        prompt = (*shared, seed) if seed % 2 else tuple(dice.choices(range(VOCAB), k=dice.choice((1, 14, 30))))
        requests.append(Request(f"r{seed}", prompt, params, 0.0))
    return requests


def wanted(logits, params, prompt, answer):
    """The logits after everything but temperature, and the tokens that must not come."""
    x = logits.double().clone()
    for token in {*prompt, *answer}:
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(answer):
        x[token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    words = params.bad_word_ids
    bad = {word[-1] for word in words if tuple(answer[len(answer) - len(word) + 1 :]) == word[:-1]}
    allowed = set(params.allowed_token_ids or range(VOCAB))
    x[[token for token in range(VOCAB) if token in bad or token not in allowed]] = -torch.inf
    return x, bad if allowed - bad else set()


@pytest.mark.parametrize("mode", MODES)
def test_every_token_is_the_one_that_the_formulas_choose(
    mode, seen_logits, answers_of_modes, start_engine, few_pages, monkeypatch
):
    wishes, flights, pages = MODES[mode]
    monkeypatch.setattr(CpuDevice, "flights", flights)
    few_pages(pages)
    engine = start_engine(**wishes)
    seen_logits.clear()
    requests = make_requests()
    for request in requests:
        engine.add(request)
    answers, cached = defaultdict(list), 0
    while engine.has_work:
        for event in engine.step():
            assert event.error is None
            answers[event.request_id] += event.token_ids
            cached += event.num_cached_tokens
    engine.check()
    assert not engine.late_events and engine.growth.arena_bytes == 0
    assert bool(engine.use.num_preemptions) == bool(pages) and bool(cached) == (mode == "cached")

    checked = 0
    for request in requests:
        params, prompt, answer = request.params, list(request.prompt_token_ids), answers[request.id]
        for at, token in enumerate(answer):
            x, bad = wanted(seen_logits[params.seed, len(prompt) + at], params, prompt, answer[:at])
            assert token not in bad and token in (params.allowed_token_ids or range(VOCAB))
            if at < params.min_tokens:
                x[9] = -torch.inf
            best = x.topk(2)
            clear = best.values[0] - best.values[1] > 1e-3
            if params.temperature == 0.0 and clear and best.values[0] > -torch.inf:
                assert token == best.indices[0], (request, at)
                checked += 1
            elif params.min_p:
                assert x[token] >= x.max() + params.temperature * torch.tensor(params.min_p).log() - 1e-3
    assert checked > 50
    first = answers_of_modes.setdefault("first", answers)
    assert sum(answers[r.id] == first[r.id] for r in requests) >= len(requests) - 1  # but for near ties
