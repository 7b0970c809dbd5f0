"""Client: requests with random prompts go into an engine, and it notes when their tokens came out."""

import random
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hotstart.engine.engine import Engine
from hotstart.request import Request, SamplingParams

__all__ = ["Client", "Drained", "Step", "state"]


@dataclass(slots=True)
class Drained:
    """What came of everything that was added: seconds since the drain began."""

    first_s: float = 0.0  # to the first token of any
    last_s: float = 0.0
    num_tokens: int = 0
    errors: list[str] = field(default_factory=list)


class Step(NamedTuple):
    """One call of `Engine.step`: it makes the next step, and waits for the one before."""

    tokens: int  # of the step that landed
    ms: float
    waited_ms: float  # for the device


class Client:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.longest = engine.limits.max_sequence_length
        self.lengths: set[int] = set()  # of prompts, so far
        self._random = random.Random(1)
        self._count = 0

    def add(self, prompt: int, answer: int, **params: Any) -> str:
        self._count += 1
        self.lengths.add(prompt)
        ids = tuple(self._random.choices(range(self.engine.vocab_size), k=prompt))
        wishes = {"temperature": 0.0, "max_tokens": answer, "ignore_eos": True, **params}
        self.engine.add(Request(str(self._count), ids, SamplingParams(**wishes), time.monotonic()))
        return str(self._count)

    def drain(self) -> Drained:
        """Until nobody waits for anything."""
        found, start = Drained(), time.perf_counter()
        while self.engine.has_work:
            for event in self.engine.step():
                found.first_s = found.first_s or time.perf_counter() - start
                found.num_tokens += len(event.token_ids)
                if event.error is not None:
                    found.errors.append(str(event.error))
        found.last_s = time.perf_counter() - start
        return found

    def steps(self) -> list[Step]:
        """Drain, and tell each step."""
        engine, found = self.engine, []
        while engine.has_work:
            start, tokens, waited_s = time.perf_counter(), engine.num_step_tokens, engine.waited_s
            engine.step()
            seconds = time.perf_counter() - start
            found.append(Step(engine.num_step_tokens - tokens, 1e3 * seconds, 1e3 * (engine.waited_s - waited_s)))
        return found

    def one(self, prompt: int, answer: int) -> Drained:
        return self.crowd(1, prompt, answer)

    def crowd(self, count: int, prompt: int, answer: int, **params: Any) -> Drained:
        """As many requests at once."""
        for _ in range(count):
            self.add(prompt, answer, **params)
        return self.drain()

    def abort_last(self) -> bool:
        """Whether it was still there to abort."""
        return bool(self.engine.abort(str(self._count)))

    def fits(self, prompt: int, answer: int) -> bool:
        return prompt + answer <= self.longest


def state(engine: Engine) -> dict[str, Any]:
    """What happened since the seal: late events by kind and name, growth, preemptions."""
    late: dict[tuple[str, str], list[float]] = {}
    for event in engine.late_events:
        late.setdefault((event.kind, event.key.partition("(")[0]), []).append(event.seconds)
    growth = engine.growth
    return {
        "late": [
            {"kind": kind, "what": what, "count": len(each), "seconds": sum(each)}
            for (kind, what), each in late.items()
        ],
        "num_late": len(engine.late_events),
        "reserved_growth_bytes": growth.arena_bytes,
        "driver_growth_bytes": growth.resident_bytes,
        "preemptions": engine.use.num_preemptions,
    }
