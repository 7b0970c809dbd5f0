"""Watch: after the seal, a compile, a tuning run, a module load or growth of memory is an event with its cause.

It sees every Triton kernel of the process, not only ours.  Compiles and loads come from Triton's hooks.  Tuning has no
hook before Triton 3.9, and a tuning run whose binaries are cached compiles nothing: so `Autotuner.run` and the
benchmarkers are wrapped.  Memory is whatever the owner says it is: a callable that returns bytes.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, get_args

import triton.testing
from triton import knobs
from triton.runtime.autotuner import Autotuner

from hotstart import log
from hotstart.errors import LateEventError
from hotstart.kernels.key import LaunchKey, explain, key_of_compile, key_of_tuning

__all__ = ["EventKind", "LateEvent", "MemoryWatch", "Watch"]

EventKind = Literal["compile", "tuning", "load", "memory"]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)

# (what was there before, whether this wrapper is the installed one) -> what to install
_Wrap = Callable[[Any, Callable[[], bool]], Any]


@dataclass(frozen=True, slots=True)
class LateEvent:
    """Something that should have happened before the seal."""

    kind: EventKind
    key: str  # the launch key, the name of a module, or the name of a memory watch
    cause: str
    seconds: float = 0.0
    num_bytes: int = 0

    def __str__(self) -> str:
        return f"late {self.kind}: {self.key}: {self.cause}"


@dataclass(frozen=True, slots=True)
class MemoryWatch:
    """Bytes that must not grow by more than `allowed_bytes` after the seal."""

    name: str
    read: Callable[[], int]
    allowed_bytes: int = 0


class Watch:
    """Open it before the warm-up (it learns the keys), `seal()` it when ready, `check()` it at each step.

    Mode "warn" counts and logs; mode "error" raises LateEventError where the event happens: before a compile or a
    tuning run starts, at `check()` for memory.  `events` holds the events since the seal.  Use it as a context manager,
    or `close()` it.
    """

    def __init__(
        self,
        mode: str = "warn",
        memory: tuple[MemoryWatch, ...] = (),
        known: Callable[[], set[LaunchKey]] = set,
    ) -> None:
        if mode not in ("warn", "error"):
            raise ValueError(f"a watch's mode is warn or error, not {mode!r}")
        self.mode = mode
        self.sealed = False
        self.events: list[LateEvent] = []
        self.compiled: list[LaunchKey] = []  # every compile seen, before and after the seal
        self.tuned: list[LaunchKey] = []
        self._memory = memory
        self._known = known
        self._baseline: dict[str, int] = {}
        self._compile_started: dict[LaunchKey, float] = {}
        self._tuning: list[tuple[LaunchKey, int]] = []  # tuners that run now, with the events there were before
        self._taps = _taps(self)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sealed = False
        for tap in reversed(self._taps):
            tap.remove()
        self._taps = []

    def seal(self) -> None:
        """From here on, what the watch sees is late."""
        # Others may have taken hooks while there was nothing to see: theirs are called by ours.
        for tap in self._taps:
            if not tap.intact():
                tap.install()
        self._baseline = {memory.name: memory.read() for memory in self._memory}
        self.sealed = True

    def count(self, kind: EventKind) -> int:
        return sum(event.kind == kind for event in self.events)

    @property
    def counts(self) -> dict[EventKind, int]:
        return {kind: self.count(kind) for kind in EVENT_KINDS}

    def check(self, *, memory: bool = True) -> None:
        """At each step: nobody has taken the hooks away, and memory is within its bounds, which a step that cannot
        have taken any need not ask.
        """
        if not self.sealed:
            return
        for tap in self._taps:
            if not tap.intact():
                tap.install()
                self._late(LateEvent(tap.kind, tap.name, "another library replaced this hook; events may be missing"))
        for one in self._memory if memory else ():
            now, before = one.read(), self._baseline[one.name]
            if now - before > one.allowed_bytes:
                self._baseline[one.name] = now  # each growth counts once
                cause = f"grew by {now - before} bytes to {now}, allowed {one.allowed_bytes}"
                self._late(LateEvent("memory", one.name, cause, num_bytes=now - before))

    def _late(self, event: LateEvent) -> None:
        self.events.append(event)
        log.warning("late event", kind=event.kind, key=event.key, cause=event.cause)
        if self.mode == "error":
            raise LateEventError(
                f"{event}; everything should have happened before the seal (--jit-monitor-mode warn serves on)"
            )

    # What the taps report.

    def compile_begins(self, key: LaunchKey) -> None:
        self._compile_started[key] = time.perf_counter()
        known = [*self.compiled, *self._known()]
        self.compiled.append(key)
        if self.sealed:
            self._late(LateEvent("compile", str(key), explain(key, known)))

    def compile_ends(self, key: LaunchKey) -> None:
        seconds = time.perf_counter() - self._compile_started.pop(key, time.perf_counter())
        self._set_seconds("compile", key, seconds)

    def module_loads(self, name: str) -> None:
        if self.sealed:
            self._late(LateEvent("load", name, "its binary was not launched before the seal"))

    def tuner_enters(self, key: LaunchKey) -> None:
        self._tuning.append((key, 0))

    def tuner_benchmarks(self) -> None:
        """A configuration is about to be measured: the first one of a run makes the event."""
        if not self._tuning:
            self._tuning_event(LaunchKey("triton.testing.do_bench", ()), "called outside of Triton's autotuner")
            return
        key, seen = self._tuning[-1]
        self._tuning[-1] = (key, seen + 1)
        if not seen:
            self._tuning_event(key, explain(key, self.tuned))

    def tuner_leaves(self, *, timings_read: bool, seconds: float) -> None:
        key, measured = self._tuning.pop()
        if measured:
            self._set_seconds("tuning", key, seconds)
        elif timings_read:
            self._tuning_event(key, f"{explain(key, self.tuned)} (its timings came from the disk)")

    def _tuning_event(self, key: LaunchKey, cause: str) -> None:
        self.tuned.append(key)
        if self.sealed:
            self._late(LateEvent("tuning", str(key), cause))

    def _set_seconds(self, kind: EventKind, key: LaunchKey, seconds: float) -> None:
        for i in reversed(range(len(self.events))):
            if self.events[i].kind == kind and self.events[i].key == str(key):
                self.events[i] = replace(self.events[i], seconds=seconds)
                return


class _Tap:
    """Replaces `owner.name` by a function that reports first and then does what was there before.

    `wrap(before, live)` makes that function; it reports only while `live()`, so that nothing is counted twice after
    another library has wrapped it and the tap was installed again.
    """

    def __init__(self, kind: EventKind, owner: Any, name: str, wrap: _Wrap) -> None:
        self.kind: EventKind = kind
        self.name = name
        self._owner = owner
        self._wrap = wrap
        self.install()

    def install(self) -> None:
        self._before = getattr(self._owner, self.name)
        self._ours: Any = None

        def live() -> bool:
            return self._ours is ours

        ours = self._ours = self._wrap(self._before, live)
        setattr(self._owner, self.name, ours)

    def intact(self) -> bool:
        return getattr(self._owner, self.name) is self._ours

    def remove(self) -> None:
        if self.intact():
            setattr(self._owner, self.name, self._before)
        self._ours = None


class _LoadTap:
    """One call in Triton's chain of load hooks."""

    kind: EventKind = "load"
    name = "kernel_load_start_hook"

    def __init__(self, report: Callable[[str], None]) -> None:
        def hook(module: object, function: object, name: str, metadata_group: object, hash: str) -> None:
            report(name)

        self._hook = hook
        self.install()

    def install(self) -> None:
        self._chain = knobs.runtime.kernel_load_start_hook
        self._chain.add(self._hook)

    def intact(self) -> bool:
        return knobs.runtime.kernel_load_start_hook is self._chain and self._hook in self._chain.calls

    def remove(self) -> None:
        self._chain.remove(self._hook)


def _hook(report: Callable[[LaunchKey], None]) -> _Wrap:
    def wrap(before: Any, live: Callable[[], bool]) -> Any:
        def hook(**info: Any) -> Any:
            if live():
                report(key_of_compile(info["fn"], info["compile"]))
            return before(**info) if before else None

        return hook

    return wrap


def _tuner_run(watch: Watch) -> _Wrap:
    def wrap(before: Any, live: Callable[[], bool]) -> Any:
        @functools.wraps(before)
        def run(tuner: Any, *args: Any, **keywords: Any) -> Any:
            if not live():
                return before(tuner, *args, **keywords)
            timings, start = getattr(tuner, "configs_timings", None), time.perf_counter()
            watch.tuner_enters(key_of_tuning(tuner, args, keywords))
            try:
                return before(tuner, *args, **keywords)
            finally:
                timings_read = getattr(tuner, "configs_timings", None) is not timings
                watch.tuner_leaves(timings_read=timings_read, seconds=time.perf_counter() - start)

        return run

    return wrap


def _measurement(watch: Watch) -> _Wrap:
    def wrap(before: Any, live: Callable[[], bool]) -> Any:
        @functools.wraps(before)
        def measure(*args: Any, **keywords: Any) -> Any:
            if live():
                watch.tuner_benchmarks()
            return before(*args, **keywords)

        return measure

    return wrap


def _taps(watch: Watch) -> list[_Tap | _LoadTap]:
    return [
        _Tap("compile", knobs.runtime, "jit_cache_hook", _hook(watch.compile_begins)),
        _Tap("compile", knobs.runtime, "jit_post_compile_hook", _hook(watch.compile_ends)),
        _LoadTap(watch.module_loads),
        _Tap("tuning", Autotuner, "run", _tuner_run(watch)),
        _Tap("tuning", Autotuner, "_bench", _measurement(watch)),
        _Tap("tuning", triton.testing, "do_bench", _measurement(watch)),
    ]
