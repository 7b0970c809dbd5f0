"""Host time of the scheduler: one `plan` and one `apply` with many sequences that each decode one token.

python bench/scheduler.py
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from hotstart.engine.plan import SpanResult, StepResult
from hotstart.engine.scheduler import Scheduler, SchedulerLimits
from hotstart.request import Request, SamplingParams


def measure(num_sequences: int, context: int, steps: int, overlap: bool) -> tuple[float, float]:
    """Median microseconds of plan and of apply."""
    scheduler = Scheduler(
        SchedulerLimits(
            max_num_seqs=num_sequences,
            max_num_batched_tokens=num_sequences * context,
            max_model_len=context + steps + 64,
            num_pages=num_sequences * ((context + steps) // 16 + 8),
            num_slots=num_sequences,
            page_size=16,
            chunk_length=64,
        )
    )
    params = SamplingParams(max_tokens=None, seed=1)
    for i in range(num_sequences):
        scheduler.add(Request(f"request-{i}", (7,) * context, params, 0.0))
    answer = SpanResult(5)
    times: dict[str, list[float]] = {"plan": [], "apply": []}
    ahead = []
    for _ in range(steps):
        start = time.perf_counter()
        plan = scheduler.plan()
        times["plan"].append(time.perf_counter() - start)
        assert plan is not None
        ahead.append(plan)
        if len(ahead) > overlap:
            oldest = ahead.pop(0)
            result = StepResult(oldest.step_id, (answer,) * len(oldest.spans))
            start = time.perf_counter()
            scheduler.apply(oldest, result)
            times["apply"].append(time.perf_counter() - start)
    return statistics.median(times["plan"]) * 1e6, statistics.median(times["apply"]) * 1e6


if __name__ == "__main__":
    print("sequences  context  overlap   plan us  apply us")
    for num_sequences, context in ((1, 100), (64, 100), (64, 8000), (256, 1000)):
        for overlap in (False, True):
            plan_us, apply_us = measure(num_sequences, context, 300, overlap)
            print(f"{num_sequences:9}  {context:7}  {overlap!s:7}  {plan_us:8.1f}  {apply_us:8.1f}")
