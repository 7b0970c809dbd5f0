"""How far start-up has come, as /ready, /plan and a terminal tell it."""

from dataclasses import dataclass, field
from typing import NamedTuple

from hotstart.engine.phases import OnPhase, Phase, PhaseProgress

__all__ = ["StartupState", "WarmedRequest"]

# The phases of start-up, for the percentage: one that is not listed counts nothing.
PHASES = (
    "download",
    "load libraries",
    "read config",
    "prepare grammars",
    "choose kernels",
    "build model",
    "load weights",
    "warm up kernels",
    "run rungs",
    "try capture",
    "plan memory",
    "allocate caches",
    "capture graphs",
    "trial requests",
    "warm up server",
)


class WarmedRequest(NamedTuple):
    """One of start-up's own requests: what the first of its kind took, and what the second."""

    name: str
    first_s: float
    again_s: float


@dataclass(slots=True)
class StartupState:
    """How far start-up has come."""

    on_phase: OnPhase
    phase: str = "load libraries"
    done: int = 0
    total: int = 0
    note: str = ""  # what it does just now, and how long it may yet take
    phases: list[Phase] = field(default_factory=list)
    requests: list[WarmedRequest] = field(default_factory=list)

    @property
    def percent(self) -> float:
        if self.phase not in PHASES:
            return 0.0
        share = self.done / self.total if self.total else 0.0
        return round(100 * (PHASES.index(self.phase) + share) / len(PHASES), 1)

    def begin(self, name: str, done: int, total: int, note: str = "") -> None:
        self.phase, self.done, self.total, self.note = name, done, total, note
        self.on_phase(PhaseProgress(name, done, total, note))

    def end(self, phase: Phase) -> None:
        self.phases.append(phase)
        self.on_phase(phase)
