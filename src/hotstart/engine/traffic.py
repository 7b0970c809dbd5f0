"""Random traffic: step plans as the scheduler makes them, with answers drawn at random.  No model, no torch."""

import random
from collections.abc import Iterator

from hotstart.engine.limits import SchedulerLimits
from hotstart.engine.plan import SpanResult, StepPlan, StepResult
from hotstart.engine.scheduler import Scheduler
from hotstart.request import Request, SamplingParams

__all__ = ["random_plans"]


def random_plans(limits: SchedulerLimits, num_steps: int, seed: int = 0) -> Iterator[StepPlan]:
    """Requests of all lengths come in bursts and one by one; some are aborted; every length of answer occurs."""
    draw = random.Random(seed)
    scheduler = Scheduler(limits)
    num_requests = num_plans = 0
    while num_plans < num_steps:
        if not scheduler.has_work or draw.random() < 0.3:
            for _ in range(draw.choice((1, 1, 1, 2, limits.max_num_seqs))):
                scheduler.add(_request(draw, num_requests, limits))
                num_requests += 1
        if scheduler.request_ids and draw.random() < 0.05:
            scheduler.abort(draw.choice(scheduler.request_ids))
        plan = scheduler.plan()
        if plan is None:
            continue
        num_plans += 1
        yield plan
        results = (SpanResult(None if span.sampling is None else draw.randrange(2)) for span in plan.spans)
        scheduler.apply(plan, StepResult(plan.step_id, tuple(results)))


def _request(draw: random.Random, number: int, limits: SchedulerLimits) -> Request:
    longest = limits.max_sequence_length - 2
    # As many short prompts as long ones: an edge sits at each multiple of a chunk, of a page and of a rung.
    length = min(
        longest, draw.choice((1, 2, 3, limits.chunk_length, limits.chunk_length + 1, int(2 ** draw.uniform(0, 14))))
    )
    params = SamplingParams(
        temperature=0.0,
        max_tokens=draw.choice((1, 2, 5, 40)),
        ignore_eos=True,
        frequency_penalty=draw.choice((0.0, 0.0, 0.5)),
        allowed_token_ids=draw.choice((None, None, (0, 1))),
    )
    return Request(f"random-{number}", (0,) * max(1, length), params, arrival_time=0.0)
