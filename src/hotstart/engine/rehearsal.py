"""What start-up runs before it sizes the caches: real step plans that bound every step which traffic can bring.

They run on a minimal cache: every entry of every page table is page 0, every slot is slot 0.  So contexts can be as
long as they ever get, while the cache is one page and one slot.  What they compute means nothing.
"""

from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Penalties, Sampling, Span, StepPlan
from hotstart.request import MAX_LOGPROBS, Request, SamplingParams, StructuredOutputsParams

__all__ = [
    "answer_plan",
    "answer_plans",
    "logprob_plan",
    "mixed_plan",
    "prompt_plan",
    "rung_plans",
    "trial_requests",
    "worst_plans",
]

_GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, position=1)
_CUT = Sampling(temperature=0.8, top_k=5, top_p=0.9, seed=7, position=1, logprobs=MAX_LOGPROBS)
_EVERYTHING = _CUT._replace(min_p=0.01, banned_ids=(0,), bias=((0, 1.0),), allowed=b"\x01")
_WIDE = _EVERYTHING._replace(top_k=0)  # top-p looks at as many tokens as it needs to
_SORTED = _EVERYTHING._replace(top_k=1 << 30)  # the whole vocabulary is put in order, whatever its probabilities are
_UNCUT = _WIDE._replace(top_p=1.0)


def worst_plans(rung: int, limits: StepLimits, *, thorough: bool = False) -> list[StepPlan]:
    """No step of up to `rung` tokens takes more memory than one of these: many answers, one prompt, many prompts; the
    first two as long as sequences can be, and filled with more prompts where those leave room.

    `thorough`: where logits take much, many answers come in every way to sample.  Elsewhere the dearest way will do.
    """
    shapes = (
        _answers_and_a_prompt(rung, limits),
        _answers_and_prompts(rung, limits),
        _prompts(rung, 1, limits),
        _prompts(rung, limits.max_num_seqs, limits),
        *([(1,)] if limits.max_num_seqs == 1 else []),  # who is alone answers, too
    )
    way, far = _EVERYTHING if thorough else _SORTED, limits.max_model_len
    plans = [_plan(shape, way, limits, logprobs_up_to=far) for shape in dict.fromkeys(shapes)]
    return plans + [_plan(shapes[0], _WIDE, limits)] * thorough


def rung_plans(rung: int, limits: StepLimits) -> list[StepPlan]:
    """As many answers as there can be, beside prompts; both ways to sample where logits are all that differs."""
    ways = (_GREEDY, _EVERYTHING) if rung <= limits.max_num_seqs else (_EVERYTHING,)
    shape = _answers_and_prompts(rung, limits)
    # Logits of every position are much work: one slab of them is like another.
    return [_plan(shape, way, limits, logprobs_up_to=limits.slab_rows) for way in ways]


def mixed_plan(rung: int, limits: StepLimits) -> StepPlan:
    """As many answers as there can be, beside prompts of at least two tokens; all of them greedy."""
    shape = _answers_and_prompts(rung, limits, shortest_prompt=2)
    return _plan(shape, _GREEDY, limits, near=True)


def prompt_plan(length: int, limits: StepLimits) -> StepPlan:
    return _plan((length,), _GREEDY, limits, near=True)


def answer_plan(size: int, limits: StepLimits) -> StepPlan:
    return _plan((1,) * size, _GREEDY, limits, near=True)


def answer_plans(size: int, limits: StepLimits) -> list[StepPlan]:
    """Answers alone, in every way to sample."""
    ways = (_GREEDY, _CUT, _EVERYTHING, _WIDE, _UNCUT)
    return [_plan((1,) * size, way, limits, near=True) for way in ways]


def logprob_plan(rows: int, limits: StepLimits) -> StepPlan:
    """As few prompts as can want so many rows of logits."""
    rows = min(rows, limits.max_num_batched_tokens)
    count = min(-(-rows // limits.max_model_len), limits.max_num_seqs)
    lengths = _lengths(rows, count, min(2, rows, limits.max_model_len), limits.max_model_len)
    return _plan(lengths, _EVERYTHING, limits, logprobs_up_to=lengths[-1])


def _answers_and_a_prompt(rung: int, limits: StepLimits) -> tuple[int, ...]:
    decodes = min(rung, limits.max_num_seqs)
    return (*(1 for _ in range(decodes - 1)), min(rung - decodes + 1, limits.max_model_len))


def _answers_and_prompts(rung: int, limits: StepLimits, shortest_prompt: int = 1) -> tuple[int, ...]:
    """One prompt, and more only where the longest leaves room."""
    count = max(min(rung - shortest_prompt + 1, limits.max_num_seqs), 1)
    return _lengths(rung, count, 1, limits.max_model_len)


def _prompts(rung: int, count: int, limits: StepLimits) -> tuple[int, ...]:
    """As many as `count` prompts, few of them as long as the others leave room for."""
    if min(rung, limits.max_model_len) == 1:
        return (1,)
    return _lengths(rung, max(min(count, rung // 2), 1), 2, limits.max_model_len)


def _lengths(rung: int, count: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Of `count` sequences, ascending: `rung` tokens together, if they can be so many, and most of them shortest."""
    lengths, rest = [], rung - count * shortest
    for _ in range(count):
        more = max(min(rest, longest - shortest), 0)
        lengths.append(shortest + more)
        rest -= more
    return tuple(reversed(lengths))


def _plan(
    lengths: tuple[int, ...], sampling: Sampling, limits: StepLimits, *, logprobs_up_to: int = 0, near: bool = False
) -> StepPlan:
    """`logprobs_up_to`: prompts as long want their tokens' log-probabilities.  `near`: with contexts of few tokens,
    where the step is run for its size and not for its cost."""
    far = limits.max_model_len
    starts = (min(far - n, limits.page_size) if near else far - n for n in lengths)
    spans = enumerate(zip(lengths, starts, strict=True))
    return StepPlan(0, tuple(_span(i, n, start, sampling, 1 < n <= logprobs_up_to, limits) for i, (n, start) in spans))


def _span(sequence_id: int, length: int, start: int, sampling: Sampling, logprobs: bool, limits: StepLimits) -> Span:
    """Unless near, at the far end of the longest sequence, where a step costs most; every third answer reads a token
    in flight."""
    return Span(
        sequence_id=sequence_id,
        start=start,
        length=length,
        token_ids=(IN_FLIGHT if length == 1 and sequence_id % 3 == 0 else 0,) * length,
        pages=(0,) * -(-(start + length) // limits.page_size),
        read_slot=0 if start else NO_SLOT,
        write_slot=0,
        sampling=sampling._replace(position=start + length),
        prompt_logprobs=MAX_LOGPROBS if logprobs else None,
        next_prompt_id=0 if logprobs else None,
        penalties=Penalties(0, 0, 1.1, 0.1, 0.1) if sampling.bias else None,
    )


def trial_requests(max_model_len: int, chunk_length: int, *, guided: bool) -> list[Request]:
    """Small requests that take every branch between `add` and the last event: they run on the real caches."""
    longest = max_model_len - 1
    if not longest:
        return []
    params: tuple[SamplingParams, ...] = (
        SamplingParams(temperature=0.0, max_tokens=3),
        SamplingParams(temperature=0.0, max_tokens=3, logprobs=MAX_LOGPROBS, prompt_logprobs=MAX_LOGPROBS),
        SamplingParams(temperature=0.8, max_tokens=3, top_k=5, top_p=0.9, seed=7, logprobs=0),
        SamplingParams(temperature=1.0, max_tokens=4, min_tokens=2, stop_token_ids=(0,)),
        SamplingParams(temperature=0.8, max_tokens=4, min_p=0.1, presence_penalty=0.5, frequency_penalty=0.5),
        SamplingParams(
            max_tokens=4, repetition_penalty=1.1, logit_bias={0: 1.0}, bad_word_ids=((0, 0),), allowed_token_ids=(0,)
        ),
    )
    if guided:
        shapes = (
            StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "string"}}}, after="a"),
            StructuredOutputsParams(regex="[a-z]+"),
        )
        params += tuple(SamplingParams(max_tokens=4, structured_outputs=shape, logprobs=1) for shape in shapes)
    lengths = (1, chunk_length + 3, 2, 3, 2, 3, 1, 2)
    return [
        Request(f"trial-{i}", (0,) * min(length, longest), one, arrival_time=0.0)
        for i, (length, one) in enumerate(zip(lengths, params, strict=False))
    ]
