"""What start-up runs before it sizes the caches: real step plans that bound every step which traffic can bring.

They run on a minimal cache: every entry of every page table is page 0, every slot is slot 0.  So contexts can be as
long as they ever get, while the cache is one page and one slot.  What they compute means nothing.
"""

from collections.abc import Iterator

from hotstart.engine.inputs import StepLimits
from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Sampling, Span, StepPlan
from hotstart.request import MAX_LOGPROBS, Request, SamplingParams

__all__ = ["rung_plans", "trial_requests"]

_GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, position=1)
_EVERYTHING = Sampling(temperature=0.8, top_k=5, top_p=0.9, seed=7, position=1, banned_ids=(0,), logprobs=MAX_LOGPROBS)


def rung_plans(rungs: tuple[int, ...], worst: set[int], limits: StepLimits) -> Iterator[tuple[int, StepPlan]]:
    """(rung, plan), largest rung first: that is when memory matters most.

    Every rung runs as many decoding sequences as there can be, beside one prompt.  The rungs that bound a limit which
    the planner may choose run their worst cases too: all tokens in one prompt, and as many prompts as there can be.
    """
    steps = 0
    for rung in reversed(rungs):
        shapes = [_decodes_and_a_prompt(rung, limits)]
        if rung in worst:
            shapes += [_prompts(rung, 1, limits), _prompts(rung, limits.max_num_seqs, limits)]
        for lengths in dict.fromkeys(shapes):
            for sampling in (_GREEDY, _EVERYTHING) if rung <= limits.max_num_seqs else (_EVERYTHING,):
                yield rung, StepPlan(steps, tuple(_span(i, n, sampling, limits) for i, n in enumerate(lengths)))
                steps += 1


def _decodes_and_a_prompt(rung: int, limits: StepLimits) -> tuple[int, ...]:
    decodes = min(rung, limits.max_num_seqs)
    prompt = min(rung - decodes + 1, limits.max_model_len)
    return (*(1 for _ in range(decodes - 1)), prompt)


def _prompts(rung: int, count: int, limits: StepLimits) -> tuple[int, ...]:
    """As many as `count` prompts, one of them as long as the others leave room for."""
    count = max(min(count, rung // 2), 1)
    rest, longest = rung - 2 * (count - 1), limits.max_model_len
    return (*(2 for _ in range(count - 1)), min(rest, longest)) if longest > 1 else (1,)


def _span(sequence_id: int, length: int, sampling: Sampling, limits: StepLimits) -> Span:
    """At the far end of the longest sequence, where a step costs most; every third decode reads a token in flight."""
    start = limits.max_model_len - length
    decode = length == 1
    return Span(
        sequence_id=sequence_id,
        start=start,
        length=length,
        token_ids=(IN_FLIGHT if decode and sequence_id % 3 == 0 else 0,) * length,
        pages=(0,) * limits.max_pages,
        read_slot=0 if start else NO_SLOT,
        write_slot=0,
        sampling=sampling,
        prompt_logprobs=None if decode or sampling is _GREEDY else MAX_LOGPROBS,
        next_prompt_id=None if decode or sampling is _GREEDY else 0,
    )


def trial_requests(max_model_len: int, chunk_length: int) -> list[Request]:
    """Small requests that take every branch between `add` and the last event: they run on the real caches."""
    longest = max_model_len - 1
    if not longest:
        return []
    params = (
        SamplingParams(temperature=0.0, max_tokens=3),
        SamplingParams(temperature=0.0, max_tokens=3, logprobs=MAX_LOGPROBS, prompt_logprobs=MAX_LOGPROBS),
        SamplingParams(temperature=0.8, max_tokens=3, top_k=5, top_p=0.9, seed=7, logprobs=0),
        SamplingParams(temperature=1.0, max_tokens=4, min_tokens=2, stop_token_ids=(0,)),
    )
    lengths = (1, chunk_length + 3, 2, 3)
    return [
        Request(f"trial-{i}", (0,) * min(length, longest), one, arrival_time=0.0)
        for i, (length, one) in enumerate(zip(lengths, params, strict=True))
    ]
