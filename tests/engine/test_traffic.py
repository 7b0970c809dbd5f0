"""Random traffic on a sealed, strict engine: no late event, no growth, no step over the declared peak, no lost page."""

import random
from collections import defaultdict

import pytest
from tiny import VOCAB

from hotstart.engine.device import CpuDevice
from hotstart.engine.meter import StepMeter
from hotstart.request import FinishReason, Request, SamplingParams

NUM_REQUESTS = 80


def random_params(dice):
    return SamplingParams(
        temperature=dice.choice((0.0, 0.7, 1.3)),
        top_k=dice.choice((0, 0, 1, 5)),
        top_p=dice.choice((1.0, 1.0, 0.5)),
        seed=dice.choice((None, dice.randrange(2**32))),
        max_tokens=dice.choice((1, 3, 30, None)),
        min_tokens=dice.choice((0, 0, 1)),
        ignore_eos=dice.random() < 0.6,
        stop_token_ids=tuple(dice.sample(range(VOCAB), dice.choice((0, 0, 3)))),
        logprobs=dice.choice((None, None, 0, 3, 20)),
        prompt_logprobs=dice.choice((None, None, None, 0, 2)),
        min_p=dice.choice((0.0, 0.0, 0.1)),
        repetition_penalty=dice.choice((1.0, 1.0, 1.2)),
        frequency_penalty=dice.choice((0.0, 0.0, 0.7)),
        logit_bias=dice.choice((None, None, dict.fromkeys(dice.sample(range(VOCAB), 200), -1.0))),
        bad_word_ids=dice.choice(((), (), ((1,), (2, 3, 4), (0, 0)))),
        allowed_token_ids=dice.choice((None, None, tuple(dice.sample(range(VOCAB), 3)))),
    )


def random_request(dice, index):
    length = dice.choice((1, 2, dice.randrange(1, 20), dice.randrange(20, 80), 80))
    return Request(f"r{index}", tuple(dice.choices(range(VOCAB), k=length)), random_params(dice), 0.0)


@pytest.mark.parametrize(
    ("family", "dtype", "flights", "pages"),
    [("dense", "float32", 1, 9), ("dense", "bfloat16", 2, 9), ("moe", "float32", 2, 36)],
    ids=str,
)
def test_random_traffic_stays_sealed_and_gives_everything_back(
    family, dtype, flights, pages, start_engine, few_pages, monkeypatch
):
    monkeypatch.setattr(CpuDevice, "flights", flights)
    few_pages(pages)
    engine = start_engine(family, dtype=dtype, mamba_ssm_cache_dtype=dtype)
    dice = random.Random(17)
    scheduler, peak = engine._scheduler, engine.memory_plan.measured.step_peak(64)
    free = scheduler.pages.num_free, scheduler.slots.num_free
    assert free == (pages, 6)

    requests, tokens, ends, worst, steps = {}, defaultdict(int), {}, 0, 0
    while len(requests) < NUM_REQUESTS or engine.has_work:
        for _ in range(dice.choice((0, 0, 1, 3)) if len(requests) < NUM_REQUESTS else 0):
            request = random_request(dice, len(requests))
            requests[request.id] = request
            engine.add(request)
        with StepMeter() as meter:
            events = engine.step()
        worst = max(worst, meter.peak_bytes)
        steps += 1
        if dice.random() < 0.1:
            events += engine.abort(f"r{dice.randrange(max(len(requests), 1))}")
        engine.check()
        for event in events:
            assert event.request_id not in ends and event.error is None
            tokens[event.request_id] += len(event.token_ids)
            if event.finish_reason is not None:
                ends[event.request_id] = event.finish_reason
    assert ends.keys() == requests.keys() and set(ends.values()) == {
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.ABORT,
    }
    assert all(tokens[id] <= (requests[id].params.max_tokens or 96) for id in requests)
    assert scheduler.num_preemptions > 0 or pages > 9
    assert (scheduler.pages.num_free, scheduler.slots.num_free) == free
    assert engine.late_events == () and engine.growth.arena_bytes == 0
    assert engine.late_counts == {"compile": None, "tuning": None, "load": None, "memory": 0}
    assert worst <= peak, f"a step took {worst:,} bytes, the plan says {peak:,}"
    assert worst > peak / 4, "the declared peak is far from what steps take"
