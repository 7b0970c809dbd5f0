"""Engine: add a request, step, abort.  It is built by `startup.start` alone, and is sealed when you get it."""

import time
import traceback
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from hotstart import log
from hotstart.engine.device import Device
from hotstart.engine.guides import Guides
from hotstart.engine.limits import SchedulerLimits
from hotstart.engine.memory import MemoryPlan
from hotstart.engine.phases import StartupReport
from hotstart.engine.plan import StepKind, StepPlan
from hotstart.engine.runner import FailedFlight, Flight, Runner
from hotstart.engine.scheduler import Scheduler
from hotstart.errors import EngineDead, HotstartError, InvalidPrompt, RequestError, StepError
from hotstart.kernels.watch import LateEvent, Watch
from hotstart.request import FinishReason, Request, StructuredOutputsParams, TokenEvent

__all__ = ["Engine", "Growth", "Use"]

COMPILE_WAIT_S = 0.02  # for a grammar, while there is nothing else to do


@dataclass(frozen=True, slots=True)
class Growth:
    """Since the seal.  The arena (on a GPU: what torch's allocator has from the driver) must not grow.

    The process is shown beside it, None where it cannot be read.
    """

    arena_bytes: int
    resident_bytes: int | None


@dataclass(frozen=True, slots=True)
class Use:
    """Of pages and slots, now.  What is cached is free to whoever needs it."""

    pages_used: int
    pages_cached: int
    slots_used: int
    slots_cached: int
    num_preemptions: int  # so far


class Engine:
    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: Runner,
        watch: Watch,
        device: Device,
        vocab_size: int,
        memory_plan: MemoryPlan,
        guides: Guides,
    ) -> None:
        self.memory_plan = memory_plan
        self.vocab_size = vocab_size
        self.startup = StartupReport(())
        self.warm_kernels: list[dict[str, Any]] = []  # what start-up compiled, by kernel; none where nothing is
        self._scheduler = scheduler
        self._runner = runner
        self._guides = guides
        self._watch = watch
        self.device = device
        self._flights: deque[Flight | FailedFlight] = deque()
        self._closed = False
        self.steps: Counter[StepKind] = Counter()  # that have landed
        self.num_step_tokens = 0  # that they computed
        self.waited_s = 0.0  # for the device to finish them: a step's other seconds are the host's
        self._death: Exception | None = None  # what lost the device
        self._sealed_bytes = (0, 0)

    def seal(self, startup: StartupReport) -> None:
        """From here on, whatever compiles, tunes, loads or grows is late.  Called once, by start-up."""
        self.startup = startup
        self._sealed_bytes = (self.device.reserved_bytes(), self.device.resident_bytes() or 0)
        self.steps.clear()
        self.num_step_tokens = 0
        self.waited_s = 0.0
        self._watch.seal()

    @property
    def has_work(self) -> bool:
        return self._death is None and bool(self._scheduler.has_work or self._guides.request_ids)

    @property
    def limits(self) -> SchedulerLimits:
        return self._scheduler.limits

    @property
    def use(self) -> Use:
        pages, slots = self._scheduler.pages, self._scheduler.slots
        return Use(pages.num_used, pages.num_cached, slots.num_used, slots.num_cached, self._scheduler.num_preemptions)

    @property
    def can_guide(self) -> bool:
        """Whether requests may have structured outputs."""
        return self._guides.can_guide

    def check_shape(self, wish: StructuredOutputsParams) -> None:
        """Compile it now.  Raises InvalidSamplingParams for what cannot be followed; `add` would say so in an event."""
        self._guides.check(wish)

    @property
    def num_steps(self) -> int:
        return self.steps.total()

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting + len(self._guides.request_ids)

    @property
    def late_events(self) -> tuple[LateEvent, ...]:
        return tuple(self._watch.events)

    @property
    def late_counts(self) -> dict[str, int | None]:
        """Events by kind; None where nothing on this device could ever be one."""
        return {kind: count if kind in self.device.late_kinds else None for kind, count in self._watch.counts.items()}

    @property
    def growth(self) -> Growth:
        arena, resident = self._sealed_bytes
        now = self.device.resident_bytes()
        return Growth(self.device.reserved_bytes() - arena, None if now is None else now - resident)

    def add(self, request: Request) -> None:
        """Raises a RequestError that says what is wrong with it; then nothing has changed."""
        self.check_alive()
        self._check_ids(request)
        if request.id in self._scheduler or request.id in self._guides.request_ids:
            raise RequestError(f"request id {request.id!r} is in use; choose another")
        wish = request.params.structured_outputs
        if wish is None:
            self._scheduler.add(request)
        else:
            self.limits.check_prompt(len(request.prompt_token_ids))
            self._guides.prepare(request, wish)

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request now: its final event.  An unknown or finished id is ignored."""
        if self._guides.drop(request_id):
            return [TokenEvent(request_id, finish_reason=FinishReason.ABORT)]
        return self._scheduler.abort(request_id)

    def step(self) -> list[TokenEvent]:
        """Launch what can be launched, then wait for the oldest step.  A step that fails ends its requests alone.

        If it lost the device, every request ends with EngineDead, and so does every later call.
        """
        self.check_alive()
        events = self._join() if self._guides.request_ids else []
        while len(self._flights) < self.device.flights and (plan := self._scheduler.plan()) is not None:
            self._draw_oldest()
            self._launch(plan)
        if not self._flights:
            return events
        flight = self._flights[0]
        self.steps[flight.plan.kind] += 1
        self.num_step_tokens += flight.plan.num_tokens
        start = time.perf_counter()
        try:
            flight.sync()
            self.waited_s += time.perf_counter() - start
            result = flight.wait()
        except Exception as error:  # whatever it was: it ends the step's own requests, and nobody else's
            _let_go(error)
            landed = self._fail(flight.plan, error) if self.device.alive() else self._die(error)
        else:
            landed = self._scheduler.apply(flight.plan, result)
        self._flights.popleft()
        events += self._follow(landed)
        self._draw_oldest()
        return events

    def close(self) -> list[TokenEvent]:
        """Stop for good.  Requests that are still running or waiting end with the events returned."""
        if self._closed:
            return []
        self._closed = True
        self._watch.close()
        self._guides.close()
        if self._death is not None:
            return []
        return self._answer_all(EngineDead("the engine was closed while the request was in it"))

    def check(self) -> None:
        """Assert that no page and no slot is lost; for tests and idle moments."""
        self._scheduler.check()

    def _join(self) -> list[TokenEvent]:
        """Requests whose grammar is compiled join the queue; one whose grammar cannot be ends."""
        idle = not self._flights and not self._scheduler.has_work
        refused: list[tuple[Request, RequestError]] = []
        for request, guide in self._guides.ready(COMPILE_WAIT_S if idle else 0.0):
            if isinstance(guide, RequestError):
                refused.append((request, guide))
            else:
                self._guides.bind(request.id, self._scheduler.add(request), guide)
        return [TokenEvent(one.id, finish_reason=FinishReason.ERROR, error=error) for one, error in refused]

    def _follow(self, events: list[TokenEvent]) -> list[TokenEvent]:
        """Show the grammars what came.  A request whose grammar cannot go on ends."""
        broken = self._guides.follow(events)
        if not broken:
            return events
        for request_id in broken:
            self.abort(request_id)
        return [
            event._replace(finish_reason=FinishReason.ERROR, error=broken[event.request_id])
            if event.request_id in broken
            else event
            for event in events
        ]

    def _launch(self, plan: StepPlan) -> None:
        """What has been planned must land, so it is in flight before it is launched: an interrupt may come between."""
        is_alone = not self._flights
        self._flights.append(FailedFlight(plan, StepError("the step was interrupted; send the request again")))
        try:
            flight = self._runner.launch(plan, is_alone=is_alone)
            self._watch.check(memory=not flight.is_replay)  # now, so that growth is of the step that grew
            self._flights[-1] = flight
        except Exception as error:  # as in `step`, which raises it when the step's turn comes
            _let_go(error)
            self._flights[-1] = FailedFlight(plan, error)

    def _draw_oldest(self) -> None:
        """All steps before it have landed, so its grammars know what may come."""
        if not self._flights:
            return
        try:
            if self._flights[0].finish():
                self._watch.check()
        except Exception as error:  # likewise
            _let_go(error)
            self._flights[0] = FailedFlight(self._flights[0].plan, error)

    def _fail(self, plan: StepPlan, error: Exception) -> list[TokenEvent]:
        log.error("step failed", step=plan.step_id, tokens=plan.num_tokens, requests=len(plan.spans), cause=error)
        if not isinstance(error, HotstartError):
            failure = StepError(
                f"step {plan.step_id} of {plan.num_tokens} tokens failed: {error}; send the request again"
            )
            failure.__cause__ = error
            error = failure
        self._hold_again()
        return self._scheduler.fail(plan, error)

    def _hold_again(self) -> None:
        """An allocator that finds no memory gives back all that it keeps, what was held for steps too."""
        if self.device.reserved_bytes() >= self._sealed_bytes[0]:
            return
        plan = self.memory_plan
        try:
            self.device.hold(plan.measured.step_peak(plan.max_num_batched_tokens))
        except RuntimeError as error:
            log.error("memory of steps was taken by others: the next ones have to ask for it", cause=error)

    def _die(self, error: Exception) -> list[TokenEvent]:
        log.error("device lost", cause=error)
        self._death = error
        lost = EngineDead(f"the device was lost ({error}); start the engine again, then send the request again")
        lost.__cause__ = error
        return self._answer_all(lost)

    def _answer_all(self, error: EngineDead) -> list[TokenEvent]:
        return [
            TokenEvent(request_id, finish_reason=FinishReason.ERROR, error=error)
            for request_id in (*self._scheduler.request_ids, *self._guides.request_ids)
        ]

    @property
    def is_lost(self) -> bool:
        """Whether the device is, and with it the engine."""
        return self._death is not None

    def check_alive(self) -> None:
        """Raises EngineDead if no request can be served any more."""
        if self._death is not None:
            raise EngineDead(f"the device was lost ({self._death}); start another engine")
        if self._closed:
            raise EngineDead("the engine is closed; start another")

    def _check_ids(self, request: Request) -> None:
        limit, ids = self.vocab_size, request.prompt_token_ids
        if ids and not 0 <= min(ids) <= max(ids) < limit:
            wrong = next(id for id in ids if not 0 <= id < limit)
            raise InvalidPrompt(f"the prompt holds token id {wrong}, ids must be in [0, {limit - 1}]")
        request.params.check_vocabulary(limit)


def _let_go(error: BaseException | None) -> None:
    """The frames of an error keep what was in them: tensors of the failed step, for as long as anyone has the error."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
