"""What prompts share is computed once: single situations; random traffic is in test_scheduler_traffic.py."""

from simulated_model import SimulatedModel, answer

from hotstart.engine.plan import NO_SLOT, StepPlan
from hotstart.engine.scheduler import Scheduler, SchedulerLimits
from hotstart.errors import StepError
from hotstart.request import Request, SamplingParams, TokenEvent

STEM = tuple(range(100, 140))


class Engine:
    """A scheduler and a simulated model; every answer is compared with the one it must give."""

    def __init__(self, **changes: object) -> None:
        limits = {
            "max_num_seqs": 3,
            "max_num_batched_tokens": 200,
            "max_model_len": 100,
            "num_pages": 50,
            "num_slots": 8,
            "page_size": 4,
            "chunk_length": 8,
            "enable_prefix_caching": True,
        }
        self.scheduler = Scheduler(SchedulerLimits(**{**limits, **changes}))
        self.model = SimulatedModel(self.scheduler.limits)
        self.requests: dict[str, Request] = {}

    def add(self, name: str, prompt: tuple[int, ...], **params: object) -> None:
        request = Request(name, prompt, SamplingParams(**{"max_tokens": 2, "seed": 3, **params}), 0.0)
        self.requests[name] = request
        self.scheduler.add(request)

    def plan(self) -> StepPlan:
        plan = self.scheduler.plan()
        assert plan is not None
        return plan

    def land(self, plan: StepPlan) -> list[TokenEvent]:
        events = self.scheduler.apply(plan, self.model.run(plan))
        self.scheduler.check()
        return events

    def serve(self, *prompts: tuple[int, ...], **params: object) -> list[int]:
        """Serve prompts together to their end; how many tokens the cache spared each."""
        names = [f"{len(self.requests) + i}" for i in range(len(prompts))]
        for name, prompt in zip(names, prompts, strict=True):
            self.add(name, prompt, **params)
        tokens: dict[str, list[int]] = {name: [] for name in names}
        cached = {}
        while self.scheduler.has_work:
            for event in self.land(self.plan()):
                tokens[event.request_id] += event.token_ids
                cached[event.request_id] = event.num_cached_tokens
        for name in names:
            assert tokens[name] == answer(self.requests[name], 3, self.scheduler.limits).tokens
        return [cached[name] for name in names]


def test_prompt_goes_on_where_an_earlier_one_ended() -> None:
    engine = Engine()
    assert engine.serve(STEM) == [0]
    # Not 40: the last token is computed again, for somebody has to say what follows it.
    assert engine.serve(STEM) == [32]
    assert engine.serve((*STEM, 1, 2, 3)) == [32]
    assert engine.serve((*STEM, 1, 2, 3), (*STEM, 1, 2)) == [40, 40], "two read one snapshot in one step"
    assert engine.serve((7, *STEM)) == [0]
    assert engine.scheduler.pages.num_used == engine.scheduler.slots.num_used == 0
    assert engine.scheduler.slots.num_cached == 3


def test_span_after_a_hit_reads_the_snapshot_and_writes_its_own_slot() -> None:
    engine = Engine()
    engine.add("a", STEM)
    first, second = engine.plan(), engine.plan()
    assert [(s.start, s.length) for plan in (first, second) for s in plan.spans] == [(0, 32), (32, 8)]
    snapshot, own = first.spans[0].write_slot, second.spans[0].write_slot
    assert first.spans[0].read_slot == NO_SLOT and second.spans[0].read_slot == snapshot != own
    engine.land(first)
    engine.add("b", STEM)
    (_, span) = engine.plan().spans
    assert (span.start, span.length, span.read_slot) == (32, 8, snapshot)
    assert span.pages[:8] == first.spans[0].pages and not {span.write_slot} & {snapshot, own}
    assert not set(span.pages[8:]) & set(second.spans[0].pages)


def test_beginning_that_two_prompts_share_is_kept_for_the_third() -> None:
    engine = Engine()
    ends = [tuple(range(10 * i, 10 * i + 10)) for i in range(3)]
    assert [engine.serve((*STEM[:16], *end)) for end in ends] == [[0], [0], [16]]


def test_cached_pages_go_before_anybody_is_preempted() -> None:
    engine = Engine(num_pages=12)
    assert engine.serve(STEM) == [0]
    assert engine.scheduler.pages.num_cached == 8 and engine.scheduler.pages.num_available == 12
    assert engine.serve(tuple(range(30)), max_tokens=10) == [0]
    assert engine.scheduler.num_preemptions == 0 and engine.serve(STEM) == [0]


def test_least_recently_used_snapshot_goes_first() -> None:
    engine = Engine(num_slots=3, max_num_seqs=1)
    a, b, c = (tuple(range(i, i + 20)) for i in (200, 300, 400))
    assert [engine.serve(prompt) for prompt in (a, b, a, c, b, a)] == [[0], [0], [16], [0], [0], [0]]
    assert [engine.serve(prompt) for prompt in (b, a)] == [[16], [16]]


def test_snapshot_yields_its_slot_to_a_sequence() -> None:
    engine = Engine(num_slots=2, max_num_seqs=2)
    engine.add("a", STEM, max_tokens=20)
    engine.land(engine.plan())
    engine.land(engine.plan())
    engine.add("b", STEM)
    assert [(span.start, span.length) for span in engine.plan().spans] == [(40, 1), (0, 32)]


def test_snapshot_of_a_failed_sequence_is_not_kept() -> None:
    engine = Engine(max_num_batched_tokens=8)
    engine.add("a", STEM[:20])
    broken, later = engine.plan(), engine.plan()
    engine.model.wreck(broken)
    result = engine.model.run(later)
    engine.scheduler.fail(broken, StepError("the step failed"))
    assert engine.scheduler.apply(later, result) == []
    engine.scheduler.check()
    assert engine.scheduler.slots.num_free == engine.scheduler.slots.total and engine.serve(STEM[:20]) == [0]


def test_preempted_sequence_resumes_at_its_snapshot() -> None:
    engine = Engine(num_pages=14, max_num_seqs=2)
    engine.add("a", tuple(range(8)), max_tokens=40)
    engine.add("b", STEM[:20], max_tokens=40)
    while not engine.scheduler.num_preemptions:
        engine.land(engine.plan())
    engine.scheduler.abort("a")
    (span,) = engine.plan().spans
    assert span.sequence_id == 2 and span.start == 16
    (event,) = engine.scheduler.abort("b")
    assert event.num_cached_tokens == 0, "what a request saved by itself is not a prompt found in the cache"


def test_prompt_logprobs_need_the_whole_prompt() -> None:
    engine = Engine()
    assert [engine.serve(STEM), engine.serve(STEM, prompt_logprobs=0)] == [[0], [0]]
