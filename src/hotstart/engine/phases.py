"""What start-up tells while it runs, and what it leaves behind: phases with their seconds and bytes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hotstart import log
from hotstart.errors import StartupError

__all__ = ["OnPhase", "Phase", "PhaseLog", "PhaseProgress", "StartupReport", "ignore_phases"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase that has ended."""

    name: str
    seconds: float
    num_bytes: int  # by which the arena grew
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """A phase that runs: `done` of `total`, in whatever unit it counts; total 0 says that it cannot tell."""

    name: str
    done: int = 0
    total: int = 0
    note: str = ""  # what it does just now, and how long it may yet take


OnPhase = Callable[[Phase | PhaseProgress], None]


def ignore_phases(event: Phase | PhaseProgress) -> None:
    """For callers who show nothing."""


@dataclass(frozen=True, slots=True)
class StartupReport:
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)


class PhaseLog:
    """Times phases, and passes them on as they happen."""

    def __init__(self, on_phase: OnPhase, reserved_bytes: Callable[[], int]) -> None:
        self.phases: list[Phase] = []
        self._on_phase = on_phase
        self._reserved_bytes = reserved_bytes

    @contextmanager
    def phase(self, name: str) -> Iterator["RunningPhase"]:
        self._on_phase(PhaseProgress(name))
        start, before = time.perf_counter(), self._reserved_bytes()
        running = RunningPhase(name, self._on_phase)
        try:
            yield running
        except (RuntimeError, MemoryError) as error:
            raise StartupError(
                f"start-up failed in phase {name!r}: {error}; "
                "if memory ran out, lower --max-num-batched-tokens or --max-num-seqs"
            ) from error
        done = Phase(name, time.perf_counter() - start, self._reserved_bytes() - before, running.detail)
        self.phases.append(done)
        log.debug("phase", name=name, seconds=done.seconds, bytes=done.num_bytes, detail=done.detail)
        self._on_phase(done)

    def report(self) -> StartupReport:
        return StartupReport(tuple(self.phases))


@dataclass(slots=True)
class RunningPhase:
    name: str
    _on_phase: OnPhase
    detail: str = ""

    def progress(self, done: int, total: int, note: str = "") -> None:
        self._on_phase(PhaseProgress(self.name, done, total, note))
