"""The scheduler's answers to single situations; random traffic is in test_scheduler_traffic.py."""

import pytest
from simulated_model import SimulatedModel, answer

from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, SpanResult, StepPlan, StepResult
from hotstart.engine.scheduler import Scheduler, SchedulerLimits
from hotstart.errors import InvalidPrompt, PromptTooLong, RequestError, StepError
from hotstart.request import FinishReason, Request, SamplingParams, TokenEvent


def make(**changes: object) -> Scheduler:
    limits = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 200,
        "num_pages": 60,
        "num_slots": 4,
        "page_size": 4,
        "chunk_length": 16,
        "eos_token_ids": (0,),
    }
    return Scheduler(SchedulerLimits(**{**limits, **changes}))


def request(name: str, length: int, **params: object) -> Request:
    return Request(name, tuple(range(1, length + 1)), SamplingParams(**{"max_tokens": None, **params}), 0.0)


def apply(scheduler: Scheduler, plan: StepPlan | None, token: int = 9) -> list[TokenEvent]:
    assert plan is not None
    answers = tuple(SpanResult(None if span.sampling is None else token) for span in plan.spans)
    events = scheduler.apply(plan, StepResult(plan.step_id, answers))
    scheduler.check()
    return events


def shape(plan: StepPlan | None) -> list[tuple[int, int, int]]:
    assert plan is not None
    return [(span.sequence_id, span.start, span.length) for span in plan.spans]


@pytest.mark.parametrize(
    ("length", "changes", "error", "words"),
    [
        (0, {}, InvalidPrompt, "empty"),
        (200, {}, PromptTooLong, "200 tokens, at most 199"),
        (190, {"num_pages": 47}, PromptTooLong, "190 tokens and needs 48 pages of 4, the cache has 47"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_can_never_run_is_refused(length, changes, error, words) -> None:
    scheduler = make(**changes)
    with pytest.raises(error, match=words) as caught:
        scheduler.add(request("a", length))
    assert isinstance(caught.value, RequestError) and not scheduler.has_work


def test_prompts_are_cut_at_chunks_beside_answers() -> None:
    scheduler = make()
    scheduler.add(request("a", 3))
    assert shape(scheduler.plan()) == [(1, 0, 3)]
    scheduler.add(request("b", 100))
    scheduler.add(request("c", 15))
    scheduler.add(request("d", 20))
    plan = scheduler.plan()
    # Beside the answer fit three chunks of b, then all of c, and nothing of d.
    assert shape(plan) == [(1, 3, 1), (2, 0, 48), (3, 0, 15)]
    assert plan is not None and plan.spans[0].token_ids == (IN_FLIGHT,)
    assert [span.sampling is None for span in plan.spans] == [False, True, False]
    assert [len(span.pages) for span in plan.spans] == [1, 12, 4]
    assert [span.read_slot == NO_SLOT for span in plan.spans] == [False, True, True]
    assert shape(scheduler.plan()) == [(1, 4, 1), (3, 15, 1), (2, 48, 52)]
    assert shape(scheduler.plan()) == [(1, 5, 1), (2, 100, 1), (3, 16, 1), (4, 0, 20)]


def test_budget_below_a_chunk_still_moves_on() -> None:
    scheduler = make(max_num_batched_tokens=5)
    scheduler.add(request("a", 18))
    assert [shape(scheduler.plan()) for _ in range(5)] == [
        [(1, 0, 5)],
        [(1, 5, 5)],
        [(1, 10, 5)],
        [(1, 15, 3)],
        [(1, 18, 1)],
    ]


def test_youngest_is_preempted_and_keeps_its_tokens() -> None:
    scheduler = make(num_pages=5, num_slots=2)
    for name, length in (("a", 8), ("b", 3), ("c", 1)):
        scheduler.add(request(name, length))
    for token in (5, 6, 7, 8, 9):
        plan = scheduler.plan()
        assert len(shape(plan)) == 2
        apply(scheduler, plan, token)
    assert shape(scheduler.plan()) == [(1, 12, 1)] and scheduler.num_preemptions == 1
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    scheduler.abort("a")
    assert scheduler.plan() is None, "the pages of a are still written"


def test_preempted_sequence_returns_before_younger_ones() -> None:
    scheduler = make(num_pages=5, num_slots=2)
    for name, length in (("a", 8), ("b", 3), ("c", 1)):
        scheduler.add(request(name, length))
    for token in (5, 6, 7, 8, 9):
        apply(scheduler, scheduler.plan(), token)
    apply(scheduler, scheduler.plan())
    scheduler.abort("a")
    plan = scheduler.plan()
    assert plan is not None and shape(plan) == [(3, 0, 1), (2, 0, 8)]
    again = plan.spans[1]
    assert again.token_ids == (1, 2, 3, 5, 6, 7, 8, 9) and again.read_slot == NO_SLOT
    assert again.sampling is not None and again.sampling.position == 8
    assert [len(event.token_ids) for event in apply(scheduler, plan)] == [1, 1]


def test_preempted_sequence_waits_for_its_steps_in_flight() -> None:
    """Though there are pages for it as soon as c has ended: its last token is not known yet."""
    scheduler = make(page_size=1, num_pages=9)
    for name, length, max_tokens in (("a", 1, None), ("c", 5, 1), ("b", 1, None)):
        scheduler.add(request(name, length, max_tokens=max_tokens))
    first, second = scheduler.plan(), scheduler.plan()
    assert scheduler.plan() is None and scheduler.num_preemptions == 1
    assert apply(scheduler, first)[-1].finish_reason is FinishReason.LENGTH
    assert shape(scheduler.plan()) == [(1, 2, 1)] and scheduler.pages.num_free == 4
    apply(scheduler, second)
    assert shape(scheduler.plan()) == [(1, 3, 1), (3, 0, 3)]


def test_newcomer_leaves_a_page_to_each_running_sequence() -> None:
    scheduler = make(num_pages=5)
    scheduler.add(request("a", 8))
    scheduler.add(request("b", 12))
    assert shape(scheduler.plan()) == [(1, 0, 8)]
    scheduler.abort("b")
    scheduler.add(request("c", 8))
    assert shape(scheduler.plan()) == [(1, 8, 1)], "a has taken its page, and none would be left for the next"


def test_prompt_logprobs_of_a_preempted_prompt_are_not_repeated() -> None:
    """It is cut elsewhere the second time, so that a span reports positions that are known and others that are not."""
    scheduler = make(num_pages=14, max_num_batched_tokens=5)
    model = SimulatedModel(scheduler.limits)
    b = request("b", 40, prompt_logprobs=1, max_tokens=1)
    scheduler.add(request("a", 9))
    scheduler.add(b)
    while not scheduler.num_preemptions:
        plan = scheduler.plan()
        assert plan is not None
        scheduler.apply(plan, model.run(plan))
    scheduler.abort("a")
    events = []
    while scheduler.has_work:
        plan = scheduler.plan()
        assert plan is not None
        events += scheduler.apply(plan, model.run(plan))
    assert list(events[0].prompt_logprobs) == answer(b, 0, scheduler.limits).prompt_logprobs


@pytest.mark.parametrize("params", [{"max_tokens": 2}, {"max_tokens": None}], ids=str)
def test_known_ends_are_not_planned_past(params) -> None:
    scheduler = make(max_model_len=5)
    scheduler.add(request("a", 3, **params))
    first, second = scheduler.plan(), scheduler.plan()
    assert scheduler.plan() is None and scheduler.has_work
    assert apply(scheduler, first)[0].finish_reason is None
    assert apply(scheduler, second)[0].finish_reason is FinishReason.LENGTH
    assert not scheduler.has_work and scheduler.pages.num_used == 0


def test_surplus_step_is_dropped_and_holds_its_pages() -> None:
    scheduler = make()
    scheduler.add(request("a", 4))
    first, surplus = scheduler.plan(), scheduler.plan()
    (event,) = apply(scheduler, first, token=0)
    assert (event.token_ids, event.finish_reason, event.stop_token_id) == ((0,), FinishReason.STOP, 0)
    assert scheduler.pages.num_used == 2 and scheduler.slots.num_used == 1 and scheduler.has_work
    assert apply(scheduler, surplus) == []
    assert scheduler.pages.num_used == scheduler.slots.num_used == 0 and not scheduler.has_work


def test_failed_step_ends_its_requests_only() -> None:
    scheduler = make()
    scheduler.add(request("a", 4))
    first = scheduler.plan()
    scheduler.add(request("b", 4))
    second = scheduler.plan()
    error = StepError("out of luck")
    (event,) = scheduler.fail(first, error)
    assert (event.request_id, event.finish_reason, event.error) == ("a", FinishReason.ERROR, error)
    assert scheduler.slots.num_used == 2
    assert [event.request_id for event in apply(scheduler, second)] == ["b"]
    assert scheduler.slots.num_used == 1


def test_abort_ends_a_request_in_any_state_once() -> None:
    scheduler = make(max_num_seqs=2)
    for name in "abc":
        scheduler.add(request(name, 4))
    plan = scheduler.plan()
    for name in ("c", "a"):
        assert [e.finish_reason for e in scheduler.abort(name)] == [FinishReason.ABORT]
        assert scheduler.abort(name) == [] == scheduler.abort("never seen")
    assert scheduler.request_ids == ("b",) and scheduler.slots.num_used == 2
    assert [event.request_id for event in apply(scheduler, plan)] == ["b"]
    assert scheduler.slots.num_used == 1


def test_states_are_packed_when_one_has_gone() -> None:
    """The last one moves into the gap, in its next step; one whose tokens are counted by slot stays."""
    scheduler = make(packs_slots=True)
    for name, params in (("a", {}), ("b", {}), ("c", {"presence_penalty": 1.0}), ("d", {})):
        scheduler.add(request(name, 3, **params))
    apply(scheduler, scheduler.plan())
    first = scheduler.plan()
    assert first is not None and [span.write_slot for span in first.spans] == [0, 1, 2, 3]
    apply(scheduler, first)
    scheduler.abort("b")
    for moves in ([(0, 0), (3, 1), (2, 2)], [(0, 0), (1, 1), (2, 2)]):
        plan = scheduler.plan()
        assert plan is not None and [(span.read_slot, span.write_slot) for span in plan.spans] == moves
        apply(scheduler, plan)
    assert scheduler.slots.num_free == 1
    scheduler.abort("a")
    plan = scheduler.plan()
    assert plan is not None and [(span.read_slot, span.write_slot) for span in plan.spans] == [(1, 1), (2, 2)]


def test_min_tokens_bans_what_ends_a_sequence() -> None:
    scheduler = make()
    scheduler.add(request("a", 4, min_tokens=2, stop_token_ids=(7, 3)))
    scheduler.add(request("b", 4, min_tokens=2, stop_token_ids=(7,), ignore_eos=True))
    banned = []
    for _ in range(3):
        plan = scheduler.plan()
        assert plan is not None
        banned.append([span.sampling.banned_ids for span in plan.spans if span.sampling])
    assert banned == [[(0, 3, 7), (7,)], [(0, 3, 7), (7,)], [(), ()]]


def test_seeds_are_drawn_by_the_order_of_requests() -> None:
    def seeds(engine_seed: int) -> list[int]:
        scheduler = make(seed=engine_seed)
        for name, seed in (("a", None), ("b", -5), ("c", None)):
            scheduler.add(request(name, 2, seed=seed))
        plan = scheduler.plan()
        assert plan is not None
        return [span.sampling.seed for span in plan.spans if span.sampling]

    assert seeds(1) == seeds(1) and seeds(1)[1] == -5
    drawn = [seeds(n)[i] for n in (0, 1) for i in (0, 2)]
    assert len(set(drawn)) == 4 and all(0 <= seed < 2**63 for seed in drawn)


def test_pages_of_an_unchanged_sequence_are_one_object() -> None:
    """A step costs the same for a long context as for a short one."""
    scheduler = make()
    scheduler.add(request("a", 40))
    plans = [scheduler.plan() for _ in range(3)]
    assert plans[1] is not None and plans[2] is not None
    assert plans[1].spans[0].pages is plans[2].spans[0].pages
