"""A model in plain Python whose every token depends on all tokens before it, through its pages and through its slot.

It runs step plans as the real one does, so a scheduler that mixes up a page, a slot, a position, a seed or an order
yields other tokens than `answer`, which computes the same function from the list of tokens alone.
"""

import random
from dataclasses import dataclass, field

from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Sampling, Span, SpanResult, StepPlan, StepResult
from hotstart.engine.scheduler import SchedulerLimits
from hotstart.request import FinishReason, PositionLogprobs, Request

VOCABULARY = 24
MODULUS = 2**61 - 1


def mix(*values: int) -> int:
    x = 17
    for value in values:
        x = (x * 1_000_003 + value * 7919 + 12345) % MODULUS
    return x


def sample(state: int, context: int, wish: Sampling) -> int:
    draw = mix(state, context, wish.seed, wish.position, int(wish.temperature * 100), wish.top_k)
    allowed = [i for i in range(VOCABULARY) if i not in wish.banned_ids]
    return allowed[draw % len(allowed)]


def logprobs_of(token: int, state: int, context: int, count: int) -> PositionLogprobs:
    value = -(mix(token, state, context) % 1000) / 100
    return PositionLogprobs(token, value, 1, tuple(range(count)), (value,) * count)


class SimulatedModel:
    def __init__(self, limits: SchedulerLimits) -> None:
        self.page_size = limits.page_size
        self.cells = [[-7] * limits.page_size for _ in range(limits.num_pages)]
        self.states = [-7] * limits.num_slots
        self.last_tokens = [-7] * limits.num_slots

    def run(self, plan: StepPlan) -> StepResult:
        return StepResult(plan.step_id, tuple(self._run_span(span) for span in plan.spans))

    def wreck(self, plan: StepPlan) -> None:
        """A step that fails half-way leaves garbage wherever it writes."""
        garbage = random.Random(plan.step_id)
        for span in plan.spans:
            self.states[span.write_slot] = self.last_tokens[span.write_slot] = garbage.randrange(MODULUS)
            for position in range(span.start, span.start + span.length):
                self.cells[span.pages[position // self.page_size]][position % self.page_size] = garbage.randrange(99)

    def _run_span(self, span: Span) -> SpanResult:
        state = 0 if span.read_slot == NO_SLOT else self.states[span.read_slot]
        tokens = [self.last_tokens[span.read_slot] if t == IN_FLIGHT else t for t in span.token_ids]
        context = sum(self._cell(span, position) for position in range(span.start)) % MODULUS
        found = []
        for i, token in enumerate(tokens):
            position = span.start + i
            self.cells[span.pages[position // self.page_size]][position % self.page_size] = mix(position, token)
            state, context = mix(state, token), (context + self._cell(span, position)) % MODULUS
            following = tokens[i + 1] if i + 1 < len(tokens) else span.next_prompt_id
            if span.prompt_logprobs is not None and following is not None:
                found.append(logprobs_of(following, state, context, span.prompt_logprobs))
        self.states[span.write_slot] = state
        if span.sampling is None:
            return SpanResult(None, None, tuple(found))
        token = self.last_tokens[span.write_slot] = sample(state, context, span.sampling)
        count = span.sampling.logprobs
        return SpanResult(token, None if count is None else logprobs_of(token, state, context, count), tuple(found))

    def _cell(self, span: Span, position: int) -> int:
        return self.cells[span.pages[position // self.page_size]][position % self.page_size]


@dataclass
class Answer:
    num_prompt: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PositionLogprobs | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None


def answer(request: Request, seed: int, limits: SchedulerLimits) -> Answer:
    """What the request must yield whatever else is going on."""
    params, prompt = request.params, request.prompt_token_ids
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(limits.eos_token_ids))
    max_tokens = limits.max_sequence_length - len(prompt)
    if params.max_tokens is not None:
        max_tokens = min(max_tokens, params.max_tokens)
    result, tokens, state, context = Answer(len(prompt)), list(prompt), 0, 0
    if params.prompt_logprobs is not None:
        result.prompt_logprobs.append(None)
    while True:
        position = state_at = len(tokens) - 1
        for state_at in range(0 if position == len(prompt) - 1 else position, position + 1):
            state = mix(state, tokens[state_at])
            context = (context + mix(state_at, tokens[state_at])) % MODULUS
            if params.prompt_logprobs is not None and state_at + 1 < len(prompt):
                following = tokens[state_at + 1]
                result.prompt_logprobs.append(logprobs_of(following, state, context, params.prompt_logprobs))
        banned = tuple(sorted(ends)) if len(result.tokens) < params.min_tokens else ()
        wish = Sampling(params.temperature, params.top_k, params.top_p, seed, len(tokens), banned, params.logprobs)
        token = sample(state, context, wish)
        tokens.append(token)
        result.tokens.append(token)
        if params.logprobs is not None:
            result.logprobs.append(logprobs_of(token, state, context, params.logprobs))
        if token in ends:
            result.finish_reason, result.stop_token_id = FinishReason.STOP, token
            return result
        if len(result.tokens) == max_tokens:
            result.finish_reason = FinishReason.LENGTH
            return result
