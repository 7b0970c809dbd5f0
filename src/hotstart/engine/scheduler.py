"""Scheduler: who computes how many tokens in the next step, and what a step's result means for each request.

Three verbs: `add` a request, `plan` a step, `apply` its result (or `fail` it).  Steps land in the order in which they
were planned, and more of them may be planned before the first has landed.

First come, first served: the running sequences are always older than the waiting ones.  A sequence is admitted when
there are pages for all its tokens, so only answers grow; when one finds no page, the youngest running sequence goes
back to the head of the queue and its tokens are computed again later.  A sequence that stops running while a step in
flight still writes its pages and its slot is draining: it gives them back when the last such step has landed.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import chain

from hotstart import log
from hotstart.cache.pool import Pool
from hotstart.engine.limits import SchedulerLimits
from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Span, SpanResult, StepPlan, StepResult
from hotstart.engine.sequence import Sequence, Status
from hotstart.errors import HotstartError, QueueFull
from hotstart.request import FinishReason, Request, TokenEvent

__all__ = ["Scheduler", "SchedulerLimits"]


@dataclass(slots=True)
class _Draft:
    """A step while it is planned."""

    budget: int
    single: list[Span] = field(default_factory=list)
    longer: list[Span] = field(default_factory=list)
    single_sequences: list[Sequence] = field(default_factory=list)
    longer_sequences: list[Sequence] = field(default_factory=list)

    def add(self, sequence: Sequence, span: Span) -> None:
        self.budget -= span.length
        if span.length == 1:
            self.single.append(span)
            self.single_sequences.append(sequence)
        else:
            self.longer.append(span)
            self.longer_sequences.append(sequence)


@dataclass(frozen=True, slots=True)
class _Flight:
    plan: StepPlan
    sequences: list[Sequence]  # one for each span


class Scheduler:
    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.pages = Pool("page", limits.num_pages)
        self.slots = Pool("slot", limits.num_slots)
        self.num_preemptions = 0
        self._num_added = 0
        self._num_planned = 0
        self._running: list[Sequence] = []  # oldest first
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()  # oldest first, all younger than the running ones
        self._draining: dict[int, Sequence] = {}
        self._flights: deque[_Flight] = deque()
        self._live: dict[str, Sequence] = {}  # running or waiting, by request

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._flights)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests that have not had their final event."""
        return tuple(self._live)

    def add(self, request: Request) -> None:
        """Raises InvalidPrompt, PromptTooLong or QueueFull; then nothing has changed."""
        limits = self.limits
        assert request.id not in self._live, f"request id {request.id!r} is in use"
        limits.check_prompt(len(request.prompt_token_ids))
        if limits.max_num_queued is not None and len(self._waiting) >= limits.max_num_queued:
            raise QueueFull(
                f"{len(self._waiting)} requests are waiting, at most {limits.max_num_queued} may; try again later"
            )
        self._num_added += 1
        params = request.params
        end_ids = frozenset(params.stop_token_ids).union(() if params.ignore_eos else limits.eos_token_ids)
        max_length = limits.max_sequence_length
        if params.max_tokens is not None:
            max_length = min(max_length, len(request.prompt_token_ids) + params.max_tokens)
        sequence = Sequence(
            id=self._num_added,
            request=request,
            seed=limits.draw_seed(self._num_added) if params.seed is None else params.seed,
            end_ids=end_ids,
            max_length=max_length,
            tokens=list(request.prompt_token_ids),
        )
        self._live[request.id] = self._waiting[sequence.id] = sequence

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request now; its final event is returned.  An unknown or finished id is ignored."""
        sequence = self._live.get(request_id)
        if sequence is None:
            return []
        self._finish(sequence)
        return [TokenEvent(request_id, finish_reason=FinishReason.ABORT)]

    def plan(self) -> StepPlan | None:
        """The next step, or None if nothing can be done before a step in flight has landed."""
        draft = _Draft(self.limits.max_num_batched_tokens)
        self._plan_answers(draft)
        self._plan_prompts(draft)
        self._admit(draft)
        if not draft.single and not draft.longer:
            return None
        self._num_planned += 1
        plan = StepPlan(self._num_planned, (*draft.single, *draft.longer))
        self._flights.append(_Flight(plan, draft.single_sequences + draft.longer_sequences))
        return plan

    def apply(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Advance the sequences of the oldest step in flight."""
        flight = self._land(plan)
        assert result.step_id == plan.step_id, f"result of step {result.step_id} for step {plan.step_id}"
        events = []
        for sequence, span, answer in zip(flight.sequences, plan.spans, result.spans, strict=True):
            sequence.num_flights -= 1
            if sequence.status is not Status.FINISHED:
                event = self._advance(sequence, span, answer)
                if event is not None:
                    events.append(event)
            if not sequence.num_flights and sequence.status is not Status.RUNNING:
                self._give_back(sequence)
        return events

    def fail(self, plan: StepPlan, error: HotstartError) -> list[TokenEvent]:
        """End every request of the oldest step in flight; what later steps find for them is dropped."""
        events = []
        for sequence in self._land(plan).sequences:
            sequence.num_flights -= 1
            if sequence.status is not Status.FINISHED:
                self._finish(sequence)
                events.append(TokenEvent(sequence.request.id, finish_reason=FinishReason.ERROR, error=error))
            elif not sequence.num_flights:
                self._give_back(sequence)
        return events

    def check(self) -> None:
        """Assert that every page and slot is accounted for; for tests and idle moments."""
        holders = [*self._running, *self._draining.values()]
        self.pages.check(chain.from_iterable(s.pages for s in holders), ())
        self.slots.check((s.slot for s in holders), ())
        order = [s.id for s in chain(self._running, self._waiting.values())]
        assert order == sorted(order), f"a younger sequence has overtaken an older one: {order}"
        assert len(self._live) == len(order), "a request is neither running nor waiting"
        flights: dict[int, int] = {}
        for sequence in chain.from_iterable(flight.sequences for flight in self._flights):
            flights[sequence.id] = flights.get(sequence.id, 0) + 1
        for sequence in (*holders, *self._waiting.values()):
            assert sequence.num_flights == flights.get(sequence.id, 0), f"flights of sequence {sequence.id}"
            assert sequence.num_computed <= sequence.num_planned <= len(sequence.tokens), f"{sequence}"
        assert all(s.num_flights and s.status is not Status.RUNNING for s in self._draining.values())
        idle = [s for s in self._waiting.values() if s.id not in self._draining]
        assert all(s.slot == NO_SLOT and not s.pages and IN_FLIGHT not in s.tokens for s in idle)

    def _plan_answers(self, draft: _Draft) -> None:
        """One token for every sequence that has one left to compute."""
        page_size = self.limits.page_size
        for sequence in tuple(self._running):
            if not draft.budget or sequence.status is not Status.RUNNING:
                return  # preempted by an older one, as are all after it
            if sequence.num_unplanned != 1 or sequence.is_full:
                continue
            num_pages = sequence.num_planned // page_size + 1
            if num_pages <= len(sequence.pages) or self._grow(sequence):
                draft.add(sequence, sequence.extend(1, num_pages))

    def _grow(self, sequence: Sequence) -> bool:
        """One more page for a sequence, from the youngest running one if none is free."""
        while not self.pages.num_free:
            youngest = self._running[-1]
            # Pages of draining sequences come back by themselves, and the youngest has nobody to take from.
            if self._draining or youngest is sequence:
                return False
            self._preempt(youngest)
        sequence.pages += self.pages.take(1)
        return True

    def _plan_prompts(self, draft: _Draft) -> None:
        """More of the prompts that were cut; all their pages are there."""
        for sequence in self._running:
            if sequence.num_unplanned > 1:
                length = self._cut(sequence, draft)
                if not length:
                    return
                draft.add(sequence, sequence.extend(length, self.limits.pages_for(sequence.num_planned + length)))

    def _admit(self, draft: _Draft) -> None:
        limits = self.limits
        while self._waiting and len(self._running) < limits.max_num_seqs:
            sequence = next(iter(self._waiting.values()))
            length = self._cut(sequence, draft)
            num_pages = self.limits.pages_for(len(sequence.tokens))
            # One page is left to each running sequence, or a newcomer might be preempted in its first step.
            spare = len(self._running)
            if sequence.num_flights or not length or not self.slots.num_free or self.pages.num_free < num_pages + spare:
                return
            del self._waiting[sequence.id]
            self._running.append(sequence)
            sequence.status = Status.RUNNING
            sequence.pages = self.pages.take(num_pages)
            (sequence.slot,) = self.slots.take(1)
            draft.add(sequence, sequence.extend(length, self.limits.pages_for(length)))

    def _cut(self, sequence: Sequence, draft: _Draft) -> int:
        """How many of the unplanned tokens fit: all, or up to a multiple of the chunk length.

        Only the first prompt of a step may be cut elsewhere, so that a budget below one chunk stops nobody.
        """
        start, budget = sequence.num_planned, draft.budget
        if sequence.num_unplanned <= budget:
            return sequence.num_unplanned
        chunk_length = self.limits.chunk_length
        aligned = (start + budget) // chunk_length * chunk_length - start
        if aligned > 0:
            return aligned
        return 0 if draft.longer else budget

    def _preempt(self, sequence: Sequence) -> None:
        assert sequence is self._running[-1], "only the youngest running sequence is preempted"
        log.debug("preempt", sequence=sequence.id, tokens=len(sequence.tokens), pages=len(sequence.pages))
        self.num_preemptions += 1
        self._running.pop()
        sequence.status = Status.WAITING
        self._waiting[sequence.id] = sequence
        self._waiting.move_to_end(sequence.id, last=False)
        self._drain(sequence)

    def _finish(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
        else:
            del self._waiting[sequence.id]
        del self._live[sequence.request.id]
        sequence.status = Status.FINISHED
        self._drain(sequence)

    def _drain(self, sequence: Sequence) -> None:
        if sequence.num_flights:
            self._draining[sequence.id] = sequence
        else:
            self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        """No step in flight writes the sequence's pages and slot any more."""
        self._draining.pop(sequence.id, None)
        self.pages.release(sequence.pages)
        self.slots.release(slot for slot in (sequence.slot,) if slot != NO_SLOT)
        sequence.rewind()

    def _land(self, plan: StepPlan) -> _Flight:
        assert self._flights and self._flights[0].plan is plan, f"step {plan.step_id} is not the oldest in flight"
        return self._flights.popleft()

    def _advance(self, sequence: Sequence, span: Span, answer: SpanResult) -> TokenEvent | None:
        end = span.start + span.length
        sequence.num_computed = end
        if answer.prompt_logprobs:
            sequence.collect(span.start, answer.prompt_logprobs)
        if span.sampling is None:
            return None
        token = answer.token_id
        assert token is not None, f"step without a token for sequence {sequence.id}"
        sequence.tokens[end] = token
        reason = stop_id = None
        if token in sequence.end_ids:
            reason, stop_id = FinishReason.STOP, token
        elif end + 1 >= sequence.max_length:
            reason = FinishReason.LENGTH
        if reason is not None:
            self._finish(sequence)
        logprobs = () if answer.logprobs is None else (answer.logprobs,)
        first = end == sequence.num_prompt and sequence.request.params.prompt_logprobs is not None
        prompt_logprobs = tuple(sequence.prompt_logprobs) if first else ()
        return TokenEvent(sequence.request.id, (token,), logprobs, prompt_logprobs, reason, stop_id)
