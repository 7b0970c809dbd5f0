"""Random traffic through the scheduler and a simulated model: whatever happens, every request gets its own answer."""

import random
from collections import deque
from dataclasses import dataclass, field

from hypothesis import HealthCheck, example, given, settings
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
        self.alone = 0  # plans in a row that passed the oldest request over

    def run(self, requests: list[Request]) -> None:
        todo = deque(requests)
        self.requests = requests
        while todo or self.scheduler.has_work:
            while todo and (not self.scheduler.has_work or self.random.random() < 0.5):
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
        self.alone = 0 if oldest in served else self.alone + 1
        assert self.alone <= self.depth if self.in_flight else self.alone == 0

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
        for earlier, _ in self.in_flight:
            for other in earlier.spans:
                for span in (s for s in spans if s.sequence_id != other.sequence_id):
                    touched = {("page", p) for p in span.pages} | {("slot", span.read_slot), ("slot", span.write_slot)}
                    assert touched.isdisjoint(writes_of(other, limits)), "given out while a step in flight writes it"

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


def writes_of(span: Span, limits: SchedulerLimits) -> list[tuple[str, int]]:
    pages = span.pages[span.start // limits.page_size :]
    return [("slot", span.write_slot), *(("page", page) for page in pages)]


@st.composite
def limits_of(draw, **fixed) -> SchedulerLimits:
    page_size = draw(st.sampled_from([1, 2, 4]))
    num_seqs = draw(st.sampled_from([1, 2, 3, 4, 6]))
    return SchedulerLimits(
        max_num_seqs=num_seqs,
        max_num_batched_tokens=draw(st.sampled_from([1, 3, 7, 16, 23, 40])),
        max_model_len=draw(st.sampled_from([2, 9, 17, 30, 60])),
        num_pages=draw(st.sampled_from([2, 9, 16, 25, 40])) // page_size or 1,
        num_slots=num_seqs + draw(st.sampled_from([-1, 0, 2])) or 1,
        page_size=page_size,
        chunk_length=draw(st.sampled_from([4, 8, 16])),
        eos_token_ids=(0, 1),
        **fixed,
    )


def random_requests(source: random.Random, count: int, limits: SchedulerLimits) -> list[Request]:
    """Prompts share beginnings, so that a mix-up of two sequences is not excused by a difference at once."""
    longest = limits.max_sequence_length - 1
    longest = source.choice([longest, min(longest, 12)])  # long prompts, or room for answers that push others out
    stem = [source.randrange(VOCABULARY) for _ in range(longest)]
    requests = []
    for i in range(count):
        length = source.randint(1, longest)
        shared = source.randint(0, length)
        prompt = stem[:shared] + [source.randrange(VOCABULARY) for _ in range(length - shared)]
        max_tokens = source.choice([None, None, 1, 2, 30])
        params = SamplingParams(
            temperature=source.choice([0.0, 1.0]),
            seed=source.choice([None, 5]),
            stop_token_ids=source.choice([(), (2, 3)]),
            ignore_eos=source.random() < 0.6,
            max_tokens=max_tokens,
            min_tokens=source.randint(0, min(max_tokens or 5, 5)),
            logprobs=source.choice([None, 0, 2]),
            prompt_logprobs=source.choice([None, None, 1]),
        )
        requests.append(Request(f"r{i}", tuple(prompt), params, 0.0))
    return requests


# Pages for a preempted sequence become free while a step in flight still holds it.
READMITTED_IN_FLIGHT = SchedulerLimits(
    max_num_seqs=3,
    max_num_batched_tokens=40,
    max_model_len=17,
    num_pages=25,
    num_slots=3,
    page_size=1,
    chunk_length=4,
    eos_token_ids=(0, 1),
)


@given(
    limits=limits_of(),
    seed=st.integers(0, 2**32),
    count=st.sampled_from([1, 4, 8, 16]),
    depth=st.sampled_from([1, 2, 3]),
    abort_rate=st.sampled_from([0.0, 0.2]),
    failure_rate=st.sampled_from([0.0, 0.05]),
)
@example(limits=READMITTED_IN_FLIGHT, seed=727, count=4, depth=3, abort_rate=0.2, failure_rate=0.0)
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_gets_its_own_answer(limits, seed, count, depth, abort_rate, failure_rate) -> None:
    source = random.Random(seed)
    traffic = Traffic(limits, source, depth, abort_rate, failure_rate)
    traffic.run(random_requests(source, count, limits))
    assert len(traffic.received) == count
    for events in traffic.received.values():
        assert sum(event.finish_reason is not None for event in events) == 1
