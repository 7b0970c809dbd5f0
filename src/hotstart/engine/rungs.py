"""Every size of step runs at start-up, largest first; some are captured; and a few requests are tried."""

from collections import deque
from collections.abc import Callable

from hotstart.engine.device import Device
from hotstart.engine.engine import Engine
from hotstart.engine.graphs import GraphBytes, StepGraphs
from hotstart.engine.inputs import GraphKey, InputBuilder
from hotstart.engine.phases import RunningPhase
from hotstart.engine.plan import StepPlan
from hotstart.engine.rehearsal import (
    answer_plan,
    answer_plans,
    logprob_plan,
    mixed_plan,
    prompt_plan,
    rung_plans,
    trial_requests,
    worst_plans,
)
from hotstart.engine.runner import Flight, Runner
from hotstart.engine.sizing import Peaks
from hotstart.errors import StartupError

__all__ = ["capture", "run_rungs", "try_capture", "try_requests"]


def run_rungs(
    whole: Runner,
    kinds: Runner,
    inputs: InputBuilder,
    sizes: tuple[int, ...],
    enough: Callable[[Peaks, int], bool],
    device: Device,
    running: RunningPhase,
) -> Peaks:
    """Measure the worst steps of `sizes`, largest first, until one leaves enough memory; then run all smaller rungs.

    `whole` runs the model, for what a step takes; `kinds` one layer of each kind, for the launches of a size: every
    other layer repeats them.
    """
    peaks: Peaks = {}
    for size in sizes:
        peaks[size] = 0
        worst = worst_plans(inputs.rung(size), inputs.limits, thorough=bool(inputs.decode_rungs))
        for done, plan in enumerate(worst):
            running.progress(done, len(worst) + len(inputs.rungs))
            with device.measure_peak() as peak:
                whole.launch(plan).sync()
            peaks[size] = max(peaks[size], peak.num_bytes)
        if enough(peaks, size):
            break
    flights: deque[Flight] = deque(maxlen=device.flights)
    rest = [rung for rung in inputs.rungs if rung < inputs.rung(size)]
    for done, rung in enumerate(reversed(rest)):
        running.progress(len(inputs.rungs) - len(rest) + done, len(inputs.rungs))
        plans = [mixed_plan(rung, inputs.limits)] if inputs.decode_rungs else rung_plans(rung, inputs.limits)
        _launch_all(kinds, plans, flights)
    _launch_all(kinds, [prompt_plan(rung, inputs.limits) for rung in reversed(inputs.prompt_rungs)], flights)
    _launch_all(kinds, _plans_of_answers(inputs), flights)
    while flights:
        flights.popleft().sync()
    running.progress(len(inputs.rungs), len(inputs.rungs))
    return peaks


def _launch_all(runner: Runner, plans: list[StepPlan], flights: deque[Flight]) -> None:
    """As serving does: the host makes a step while the device runs the one before."""
    for plan in plans:
        flights.append(runner.launch(plan))
        if len(flights) == flights.maxlen:
            flights.popleft().sync()


def _plans_of_answers(inputs: InputBuilder) -> list[StepPlan]:
    """Where steps of answers alone have rungs of their own: each of those, and each number of rows of logits.

    More rows than a slab are slabs and a rest, each of which has run with fewer.
    """
    if not inputs.decode_rungs:
        return []
    slab_rows = inputs.limits.slab_rows
    large = [answer_plan(size, inputs.limits) for size in inputs.decode_rungs if size > slab_rows]
    small = [plan for size in inputs.decode_rungs if size <= slab_rows for plan in answer_plans(size, inputs.limits)]
    rows = [logprob_plan(rung, inputs.limits) for rung in inputs.row_rungs if rung not in inputs.decode_rungs]
    return [*reversed(large), *reversed(small), *reversed(rows)]


def try_capture(graphs: StepGraphs, runner: Runner, inputs: InputBuilder) -> GraphBytes:
    """What all graphs will take, from capturing some on a minimal cache."""
    return graphs.trial(lambda key: runner.capture(_plan_of(key, inputs)))


def capture(
    graphs: StepGraphs,
    runner: Runner,
    inputs: InputBuilder,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    running: RunningPhase,
) -> None:
    """Largest first, for steps as large as there can be; the first replay of each is not left to a request."""
    most = inputs.rung(max_num_batched_tokens), inputs.decode_rung_of(max_num_seqs)
    keys = [key for key in graphs.keys if key.tokens <= most[not key.is_prompt]]
    for done, key in enumerate(keys):
        running.progress(done, len(keys))
        runner.capture(_plan_of(key, inputs))
    for key in keys:
        runner.launch(_plan_of(key, inputs)).sync()
    running.progress(len(keys), len(keys))
    running.detail = f"{len(keys)} sizes"


def _plan_of(key: GraphKey, inputs: InputBuilder) -> StepPlan:
    return (prompt_plan if key.is_prompt else answer_plan)(key.tokens, inputs.limits)


def try_requests(engine: Engine, device: Device) -> None:
    """Small requests, all at once, through everything that a request meets; one of them is aborted."""
    requests = trial_requests(engine.memory_plan.max_model_len, device.chunk_length, guided=engine.can_guide)
    for request in requests:
        engine.add(request)
    events = engine.step() if requests else []
    if requests:
        events += engine.abort(requests[-1].id)
    while engine.has_work:
        events += engine.step()
    for event in events:
        if event.error is not None:
            raise StartupError(f"trial request {event.request_id} failed: {event.error}") from event.error
    engine.check()
