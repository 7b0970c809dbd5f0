"""Random traffic: requests of all lengths and with every option come in waves; some are aborted, some have to give way.

It tells what it brought, so that a record of "nothing was late" says of what.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from hotstart import log
from hotstart.bench.client import Client, state
from hotstart.engine.plan import StepKind
from hotstart.request import SamplingParams, StructuredOutputsParams

__all__ = ["NUMBERS", "traffic"]

_DEFAULTS = SamplingParams()
# An answer that must be this has no end within its tokens.
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 1000}
# Of a request of random traffic, beside `_random_params`.
WAYS: tuple[dict[str, Any], ...] = (
    {"min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"logit_bias": {1: 2.0, 2: -1.0}, "bad_word_ids": ((2,), (3, 4))},
    {"min_tokens": 1, "stop_token_ids": (3, 5), "ignore_eos": False},
    {"allowed_token_ids": (1, 2, 5)},
    {"structured_outputs": StructuredOutputsParams(json=NUMBERS)},
)
WAVE, MOST_TOKENS = 100, 2048  # requests of random traffic that come at once, tokens of its prompts


def traffic(client: Client, num_requests: int = 10_000) -> dict[str, Any]:
    """Random requests of all lengths in waves, with every way to sample; some are aborted.

    Every tenth wave meets an idle engine, with short prompts and long answers: where pages are few, the youngest have
    to give way.  Of what such traffic is there to bring, what is missing is told.
    """
    engine, dice, errors = client.engine, random.Random(2), list[str]()

    def step() -> None:
        if engine.has_work:
            errors.extend(str(event.error) for event in engine.step() if event.error is not None)

    ways = [way for way in WAYS if "structured_outputs" not in way or engine.can_guide]
    longest = math.log2(min(MOST_TOKENS, max(client.longest // 2, 1)))
    steps, preemptions, aborts = engine.steps.copy(), engine.use.num_preemptions, 0
    options: Counter[str] = Counter()
    for first in range(0, num_requests, WAVE):
        is_crowd = first // WAVE % 10 == 0
        errors += client.drain().errors if is_crowd else []
        for i in range(first, min(first + WAVE, num_requests)):
            params = _random_params(dice, ways) | {"seed": i}
            prompt = int(2 ** dice.uniform(0, min(longest, 4) if is_crowd else longest))
            answer = 120 if is_crowd else dice.choice((1, 4, 40))
            client.add(prompt, max(1, min(answer, client.longest // 2)), **params)
            options.update(name for name, value in params.items() if value != getattr(_DEFAULTS, name))
            if is_crowd and i == first:
                step()  # of a prompt alone
        for _ in range(20):
            step()
        aborts += client.abort_last()
    errors += client.drain().errors
    brought = {
        **{f"{kind} steps": engine.steps[kind] - steps[kind] for kind in get_args(StepKind)},
        "aborts": aborts,
        "preemptions": engine.use.num_preemptions - preemptions,
    }
    missing = [what for what, count in brought.items() if not count]
    if missing:
        log.warning("traffic did not bring all", missing=", ".join(missing))
    return {
        "requests": num_requests,
        "failed": len(errors),
        "errors": errors[:3],
        "brought": brought,
        "missing": missing,
        "options": dict(options),
        **state(engine),
    }


def _random_params(dice: random.Random, ways: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "temperature": dice.choice((0.0, 0.0, 0.8)),
        "top_k": dice.choice((0, 40)),
        "top_p": dice.choice((1.0, 0.9)),
        "logprobs": dice.choice((None, None, None, 5)),
        "prompt_logprobs": dice.choice((None,) * 19 + (1,)),
        **(dice.choice(ways) if dice.random() < 0.3 else {}),
    }
