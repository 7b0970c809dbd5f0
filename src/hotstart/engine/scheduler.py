"""Scheduler: who computes how many tokens in the next step, and what a step's result means for each request.

Three verbs: `add` a request, `plan` a step, `apply` its result (or `fail` it).  Steps land in the order in which they
were planned, and more of them may be planned before the first has landed.

First come, first served: the running sequences are always older than the waiting ones.  A sequence is admitted when
there are pages for all its tokens, so only answers grow; when one finds no page, the youngest running sequence goes
back to the head of the queue and its tokens are computed again later.  A sequence that stops running while a step in
flight still writes its pages and its slot is draining: it gives them back when the last such step has landed.
"""

import time
from collections import OrderedDict, deque
from itertools import chain

from hotstart import log
from hotstart.engine.holdings import Holdings
from hotstart.engine.limits import SchedulerLimits
from hotstart.engine.pending import DraftStep, PendingStep
from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Span, SpanResult, StepPlan, StepResult
from hotstart.engine.sequence import Sequence, Status
from hotstart.errors import HotstartError
from hotstart.request import FinishReason, PositionLogprobs, Request, TokenEvent

__all__ = ["Scheduler", "SchedulerLimits"]


class Scheduler:
    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._holdings = Holdings(limits)
        self.pages, self.slots = self._holdings.pages, self._holdings.slots
        self.num_preemptions = 0
        self._num_added = 0
        self._num_planned = 0
        self._running: list[Sequence] = []  # oldest first
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()  # oldest first, all younger than the running ones
        self._draining: dict[int, Sequence] = {}
        self._pending: deque[PendingStep] = deque()
        self._live: dict[str, Sequence] = {}  # running or waiting, by request

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._pending)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests that have not had their final event."""
        return tuple(self._live)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._live

    def add(self, request: Request) -> int:
        """The id of its sequence.  Raises InvalidPrompt or PromptTooLong; then nothing has changed."""
        limits = self.limits
        assert request.id not in self, f"request id {request.id!r} is in use"
        limits.check_prompt(len(request.prompt_token_ids))
        self._num_added += 1
        params = request.params
        assert params.n == 1, "a request is one answer: SamplingParams.choices() makes n of them"
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
            keys=self._holdings.keys_of(request),
        )
        self._live[request.id] = self._waiting[sequence.id] = sequence
        return sequence.id

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request now; its final event is returned.  An unknown or finished id is ignored."""
        sequence = self._live.get(request_id)
        if sequence is None:
            return []
        self._finish(sequence)
        return [_ended(sequence, FinishReason.ABORT)]

    def plan(self) -> StepPlan | None:
        """The next step, or None if nothing can be done before a step in flight has landed."""
        draft = DraftStep(self.limits.max_num_batched_tokens)
        self._plan_answers(draft)
        self._plan_prompts(draft)
        self._admit(draft)
        if not draft.single and not draft.longer:
            return None
        self._num_planned += 1
        step = draft.close(self._num_planned)
        self._pending.append(step)
        return step.plan

    def apply(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Advance the sequences of the oldest step in flight."""
        step = self._land(plan)
        assert result.step_id == plan.step_id, f"result of step {result.step_id} for step {plan.step_id}"
        self._holdings.keep_snapshots(step)
        events = []
        for sequence, span, answer in zip(step.sequences, plan.spans, result.spans, strict=True):
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
            sequence.is_broken = True
            if sequence.status is not Status.FINISHED:
                self._finish(sequence)
                events.append(_ended(sequence, FinishReason.ERROR, error))
            elif not sequence.num_flights:
                self._give_back(sequence)
        return events

    def check(self) -> None:
        """Assert that every page and slot is accounted for; for tests and idle moments."""
        holders = [*self._running, *self._draining.values()]
        self._holdings.check(holders, self._pending)
        order = [s.id for s in chain(self._running, self._waiting.values())]
        assert order == sorted(order), f"a younger sequence has overtaken an older one: {order}"
        assert len(self._live) == len(order), "a request is neither running nor waiting"
        flights: dict[int, int] = {}
        for sequence in chain.from_iterable(step.sequences for step in self._pending):
            flights[sequence.id] = flights.get(sequence.id, 0) + 1
        for sequence in (*holders, *self._waiting.values()):
            assert sequence.num_flights == flights.get(sequence.id, 0), f"flights of sequence {sequence.id}"
            assert sequence.num_computed <= sequence.num_planned <= len(sequence.tokens), f"{sequence}"
        assert all(s.num_flights and s.status is not Status.RUNNING for s in self._draining.values())
        idle = [s for s in self._waiting.values() if s.id not in self._draining]
        assert all(s.slot == NO_SLOT and not s.pages and IN_FLIGHT not in s.tokens for s in idle)

    def _plan_answers(self, draft: DraftStep) -> None:
        """One token for every sequence that has one left to compute."""
        page_size = self.limits.page_size
        for sequence in tuple(self._running):
            if not draft.budget or sequence.status is not Status.RUNNING:
                return  # preempted by an older one, as are all after it
            num_planned, num_tokens = sequence.num_planned, len(sequence.tokens)
            if num_tokens - num_planned != 1 or num_tokens >= sequence.max_length:  # its last token is in flight
                continue
            if sequence.waits and sequence.tokens[-1] == IN_FLIGHT:
                continue
            num_pages = num_planned // page_size + 1
            if num_pages <= len(sequence.pages) or self._grow(sequence):
                if self.limits.packs_slots and sequence.slot >= len(self._running):
                    self._holdings.pack(sequence, len(self._running))
                draft.add(sequence, sequence.extend(1, num_pages, sequence.slot))

    def _grow(self, sequence: Sequence) -> bool:
        """One more page for a sequence, from the youngest running one if none is free."""
        while not self._holdings.grow(sequence):
            youngest = self._running[-1]
            # Pages of draining sequences come back by themselves, and the youngest has nobody to take from.
            if self._draining or youngest is sequence:
                return False
            self._preempt(youngest)
        return True

    def _plan_prompts(self, draft: DraftStep) -> None:
        """More of the prompts that were cut; all their pages are there."""
        for sequence in self._running:
            if sequence.num_unplanned > 1:
                length = self._cut(sequence, sequence.num_planned, draft)
                if not length:
                    return
                self._extend_prompt(sequence, length, draft)

    def _admit(self, draft: DraftStep) -> None:
        while self._waiting and len(self._running) < self.limits.max_num_seqs and draft.budget:
            sequence = next(iter(self._waiting.values()))
            if sequence.num_flights:
                return
            match = self._holdings.match(sequence)
            sequence.snapshots_at = self._holdings.snapshots_wanted(sequence, match)
            length = self._cut(sequence, match.length, draft)
            # One page is left to each running sequence, or a newcomer might be preempted in its first step.
            if not length or not self._holdings.admit(sequence, match, spare=len(self._running)):
                return
            del self._waiting[sequence.id]
            self._running.append(sequence)
            sequence.status = Status.RUNNING
            if sequence.admitted_time is None:
                sequence.admitted_time = time.monotonic()
            self._extend_prompt(sequence, length, draft)

    def _extend_prompt(self, sequence: Sequence, length: int, draft: DraftStep) -> None:
        """Plan a piece of a prompt; where a snapshot is wanted after it, it leaves its state in a slot of its own."""
        end = sequence.num_planned + length
        slot = self._holdings.slot_for_snapshot() if end in sequence.snapshots_at else None
        num_pages = self.limits.pages_for(end)
        draft.add(sequence, sequence.extend(length, num_pages, sequence.slot if slot is None else slot))

    def _cut(self, sequence: Sequence, start: int, draft: DraftStep) -> int:
        """How many tokens from `start` on fit: all, or up to where a snapshot is wanted or a chunk ends.

        Only the first prompt of a step may be cut elsewhere, so that a budget below one chunk stops nobody.
        """
        budget = draft.budget
        end = next((end for end in sequence.snapshots_at if end > start), len(sequence.tokens))
        if end - start <= budget:
            return end - start
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
        self._holdings.give_back(sequence)

    def _land(self, plan: StepPlan) -> PendingStep:
        assert self._pending and self._pending[0].plan is plan, f"step {plan.step_id} is not the oldest in flight"
        step = self._pending.popleft()
        self._holdings.land(step)
        return step

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
        prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()
        request, admitted = sequence.request, None
        if end == len(request.prompt_token_ids):
            admitted = sequence.admitted_time
            if request.params.prompt_logprobs is not None:
                prompt_logprobs = tuple(sequence.prompt_logprobs)
        cached = sequence.num_cached or 0
        return TokenEvent(request.id, (token,), logprobs, prompt_logprobs, reason, stop_id, None, cached, admitted)


def _ended(sequence: Sequence, reason: FinishReason, error: HotstartError | None = None) -> TokenEvent:
    """The last event of a request that has no more tokens."""
    cached = sequence.num_cached or 0
    return TokenEvent(sequence.request.id, finish_reason=reason, error=error, num_cached_tokens=cached)
