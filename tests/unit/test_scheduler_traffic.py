"""Random traffic through the scheduler and a simulated model: whatever happens, every request gets its own answer."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_model import VOCABULARY, Answer, SimulatedModel, answer

from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Span, StepPlan
from hotstart.engine.scheduler import Scheduler, SchedulerLimits
from hotstart.errors import StepError
from hotstart.request import FinishReason, Request, SamplingParams, TokenEvent


@dataclass
class Traffic:
    """Requests that arrive, stop and fail at random moments, `depth` steps planned ahead."""

    limits: SchedulerLimits
    random: random.Random
    depth: int = 1
    abort_rate: float = 0.0
    failure_rate: float = 0.0
    expected: dict[str, Answer] = field(default_factory=dict)
    received: dict[str, list[TokenEvent]] = field(default_factory=dict)
    in_flight: deque = field(default_factory=deque)  # (plan, result or None for a failure)
    num_plans: int = 0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)
        self.model = SimulatedModel(self.limits)
        self.passed_over = 0  # plans in a row without the oldest request

    def run(self, requests: list[Request]) -> None:
        todo = deque(requests)
        self.requests = requests
        rush = self.random.choice([0.1, 0.5, 0.9])
        while todo or self.scheduler.has_work:
            while todo and (not self.scheduler.has_work or self.random.random() < rush):
                self.add(todo.popleft())
            if self.random.random() < self.abort_rate and self.received:
                self.take(self.scheduler.abort(self.random.choice(list(self.received))))
            plan = self.plan() if len(self.in_flight) < self.depth else None
            if self.in_flight and (plan is None or self.random.random() < 0.2):
                self.land()
            self.check()
        assert self.scheduler.pages.num_used == self.scheduler.slots.num_used == 0

    def add(self, request: Request) -> None:
        self.scheduler.add(request)
        self.received[request.id] = []
        seed = self.scheduler._live[request.id].seed
        self.expected[request.id] = answer(request, seed, self.limits)
        self.check()

    def plan(self) -> StepPlan | None:
        live = [self.scheduler._live[i] for i in self.scheduler.request_ids]
        plan = self.scheduler.plan()
        self.check()
        if live:
            self.check_oldest(min(sequence.id for sequence in live), plan)
        if plan is None:
            assert self.in_flight or not live, "nothing is in flight and nothing is planned"
            return None
        self.check_plan(plan)
        self.num_plans += 1
        if self.random.random() < self.failure_rate:
            self.model.wreck(plan)
            self.in_flight.append((plan, None))
        else:
            self.in_flight.append((plan, self.model.run(plan)))
        return plan

    def land(self) -> None:
        plan, result = self.in_flight.popleft()
        if result is None:
            self.take(self.scheduler.fail(plan, StepError("the step failed")))
        else:
            self.take(self.scheduler.apply(plan, result))

    def take(self, events: list[TokenEvent]) -> None:
        for event in events:
            seen = self.received[event.request_id]
            assert not seen or seen[-1].finish_reason is None, f"{event} after the final {seen[-1]}"
            seen.append(event)
            self.check_answer(event.request_id)

    def check_answer(self, request_id: str) -> None:
        events, expected = self.received[request_id], self.expected[request_id]
        tokens = [token for event in events for token in event.token_ids]
        assert tokens == expected.tokens[: len(tokens)]
        assert [x for event in events for x in event.logprobs] == expected.logprobs[: len(tokens)]
        assert [x for event in events for x in event.prompt_logprobs] == expected.prompt_logprobs * bool(tokens)
        last = events[-1]
        assert last.num_cached_tokens <= self.limits.enable_prefix_caching * (expected.num_prompt - 1)
        assert (last.error is None) == (last.finish_reason is not FinishReason.ERROR)
        if last.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert tokens == expected.tokens
            assert (last.finish_reason, last.stop_token_id) == (expected.finish_reason, expected.stop_token_id)

    def check(self) -> None:
        self.scheduler.check()
        for pool in (self.scheduler.pages, self.scheduler.slots):
            assert pool.num_free + pool.num_used + pool.num_cached == pool.total

    def check_oldest(self, oldest: int, plan: StepPlan | None) -> None:
        """First come, first served: with nothing in flight the oldest request is always served."""
        served = [span.sequence_id for p in [plan, *(p for p, _ in self.in_flight)] if p for span in p.spans]
        self.passed_over = 0 if oldest in served else self.passed_over + 1
        assert self.passed_over <= self.depth if self.in_flight else self.passed_over == 0

    def check_plan(self, plan: StepPlan) -> None:
        limits, spans = self.limits, plan.spans
        lengths = [span.length for span in spans]
        assert lengths == [1] * lengths.count(1) + [n for n in lengths if n > 1]
        assert sum(lengths) <= limits.max_num_batched_tokens
        assert len(spans) == len({span.sequence_id for span in spans}) <= limits.max_num_seqs
        writes = [write for span in spans for write in writes_of(span, limits)]
        assert len(writes) == len(set(writes)), "two spans write the same place"
        for span in spans:
            self.check_span(span)
        # Only the first prompt of a step is cut within a chunk, when the budget ends there.
        for i, span in enumerate(s for s in spans if s.length > 1):
            if span.sampling is None and (span.start + span.length) % limits.chunk_length:
                assert i == 0 and sum(lengths) == limits.max_num_batched_tokens
                assert span.start // limits.chunk_length == (span.start + span.length) // limits.chunk_length
        for other in (other for p in (plan, *(p for p, _ in self.in_flight)) for other in p.spans):
            for span in (s for s in spans if s.sequence_id != other.sequence_id):
                assert touches_of(span).isdisjoint(writes_of(other, limits)), "given out while a step may write it"
                assert touches_of(other).isdisjoint(writes_of(span, limits)), "written while a step may read it"

    def check_span(self, span: Span) -> None:
        limits, request, end = self.limits, self.requests[span.sequence_id - 1], span.start + span.length
        assert len(span.token_ids) == span.length and (span.length == 1 or IN_FLIGHT not in span.token_ids)
        assert len(set(span.pages)) == len(span.pages) == -(-end // limits.page_size)
        assert (span.read_slot == NO_SLOT) == (span.start == 0)
        num_prompt = len(request.prompt_token_ids)
        if span.sampling is None:
            assert end < num_prompt or self.scheduler.num_preemptions
        else:
            assert span.sampling.position == end < limits.max_sequence_length, "planned past the end"
            assert end < num_prompt + (request.params.max_tokens or end), "planned past the end"
        if span.prompt_logprobs is not None:
            assert span.start + 1 < num_prompt and span.prompt_logprobs == request.params.prompt_logprobs
            assert span.next_prompt_id == (request.prompt_token_ids[end] if end < num_prompt else None)


def touches_of(span: Span) -> set[tuple[str, int]]:
    return {("page", page) for page in span.pages} | {("slot", span.read_slot), ("slot", span.write_slot)}


def writes_of(span: Span, limits: SchedulerLimits) -> list[tuple[str, int]]:
    pages = span.pages[span.start // limits.page_size :]
    return [("slot", span.write_slot), *(("page", page) for page in pages)]


@st.composite
def limits_of(draw, kind: str) -> SchedulerLimits:
    """Any limits, pages so few that answers push each other out, or room enough to keep what prompts share."""
    page_size = draw(st.sampled_from([1, 2, 4]))
    num_seqs = draw(st.sampled_from([1, 2, 3, 4, 6] if kind == "any" else [2, 4, 6]))
    pick = {
        "any": ([1, 3, 7, 16, 23, 40], [2, 9, 17, 30, 60], [4, 9, 16, 25, 40, 120], [-1, 0, 2, 6], [4, 8, 16]),
        "tight": ([7, 23, 40], [60], [25, 40, 50], [0, 1], [4]),
        "roomy": ([7, 23, 40], [60], [120, 200], [4, 8], [4]),
    }[kind]
    budget, length, pages, slots, chunk = (draw(st.sampled_from(values)) for values in pick)
    return SchedulerLimits(
        max_num_seqs=num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=length,
        num_pages=pages // page_size,
        num_slots=max(1, num_seqs + slots),
        page_size=page_size,
        chunk_length=chunk,
        eos_token_ids=(0, 1),
        enable_prefix_caching=draw(st.booleans()) or kind == "roomy",
        packs_slots=draw(st.booleans()),
    )


def random_requests(source: random.Random, count: int, limits: SchedulerLimits, kind: str) -> list[Request]:
    """Prompts share beginnings, so that a mix-up of two sequences is not excused by a difference at once."""
    longest = limits.max_sequence_length - 1
    longest = {"any": longest, "tight": 12, "roomy": 40}[kind]
    stem = [source.randrange(VOCABULARY) for _ in range(longest)]
    requests = []
    for i in range(count):
        length = source.randint(1, longest)
        shared = source.choice([0, length, source.randint(0, length)])
        prompt = stem[:shared] + [source.randrange(VOCABULARY) for _ in range(length - shared)]
        max_tokens = source.choice({"any": [None, 1, 2, 30], "tight": [None, 30], "roomy": [1, 3, 10]}[kind])
        params = SamplingParams(
            temperature=source.choice([0.0, 1.0]),
            seed=source.choice([None, 5]),
            stop_token_ids=source.choice([(), (2, 3)]),
            ignore_eos=source.random() < 0.6,
            max_tokens=max_tokens,
            min_tokens=source.randint(0, min(max_tokens or 5, 5)),
            logprobs=source.choice([None, 0, 2]),
            prompt_logprobs=source.choice([None, None, None, 1]),
        )
        requests.append(Request(f"r{i}", tuple(prompt), params, 0.0))
    return requests


@pytest.mark.parametrize("kind", ["any", "tight", "roomy"])
@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_gets_its_own_answer(kind: str, data: st.DataObject) -> None:
    limits = data.draw(limits_of(kind), "limits")
    count = data.draw(st.sampled_from([1, 4, 8, 16]), "requests")
    depth = data.draw(st.sampled_from([1, 2, 3]), "steps ahead")
    abort_rate = data.draw(st.sampled_from([0.0, 0.1]), "abort rate")
    failure_rate = data.draw(st.sampled_from([0.0, 0.0, 0.03]), "failure rate")
    source = random.Random(data.draw(st.integers(0, 2**32), "seed"))
    traffic = Traffic(limits, source, depth, abort_rate, failure_rate)
    traffic.run(random_requests(source, count, limits, kind))
    assert len(traffic.received) == count
    for events in traffic.received.values():
        assert sum(event.finish_reason is not None for event in events) == 1
