"""resolve(): which tiles each kernel uses on this GPU, settled before the warm-up compiles anything.

    a table shipped with the package -> this machine's cache -> timed now -> the safe default

First the candidates of all kernels are compiled, in parallel.  Timing then calls the real op with each, through its
Launchers, on scratch memory of bounded size and for a bounded time; who is far behind after a glance is not timed
further.  The winner is the fastest over all declared shapes; candidates within the tolerance of it tie, and the first
in declared order wins, so that noise does not choose.  Winners go to the disk: the next start times nothing.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import torch
import triton
import triton.testing
from triton.errors import TritonError
from triton.runtime import driver

from hotstart import log
from hotstart.errors import WarmupError
from hotstart.kernels.launch import Recording, recording
from hotstart.kernels.space import LaunchSpace
from hotstart.kernels.target import Target, current_target
from hotstart.kernels.tile_tables import Entry, Table, cached_path, read_cached, shipped, write_table
from hotstart.kernels.tiles import TUNABLES, Trial, Tunable
from hotstart.kernels.warm_up import load

__all__ = ["SCRATCH_BYTES", "Choice", "OnTuning", "TileReport", "TuneMode", "keep", "resolve", "shape_name"]

TuneMode = Literal["auto", "off", "force"]
Origin = Literal["shipped", "cached", "tuned", "default"]
OnTuning = Callable[[str, int, int, float], None]  # kernel, candidates done, all of them, seconds left

TIME_LIMIT_S = 60.0
INPUT_BYTES = 256 << 20  # of a trial's tensors
# Beside them: what the op itself takes, and the buffer with which Triton's benchmark empties the caches.
SCRATCH_BYTES = INPUT_BYTES + (128 << 20) + (256 << 20)
TOLERANCE = 0.03
COMPILE_SHARE = 0.5  # of the time: what is not compiled by then is no candidate
GLANCE_LIMIT = 1.3  # times the fastest, in a short run of the first shape
_META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Choice:
    kernel: str
    family: Any
    tiles: Any
    origin: Origin
    note: str = ""  # whose measurement, or why there is none
    entry: Entry | None = None

    def __str__(self) -> str:
        return f"{self.kernel}: {_in_words(self.tiles)} for {_in_words(self.family)}: {self.origin}{self.note}"


@dataclass(frozen=True, slots=True)
class TileReport:
    target: Target
    choices: tuple[Choice, ...]
    seconds: float
    scratch_bytes: int  # the most that tuning held at once; all of it is free again

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(choice.entry for choice in self.choices if choice.entry is not None)

    def summary(self) -> str:
        """`tiles: 3 shipped, 1 tuned in 12.1 s`"""
        origins = [choice.origin for choice in self.choices]
        counts = ", ".join(f"{origins.count(o)} {o}" for o in dict.fromkeys(origins))
        return f"tiles: {counts or 'none'}" + (f" in {self.seconds:.1f} s" if "tuned" in origins else "")


def resolve(
    *spaces: LaunchSpace,
    mode: TuneMode = "auto",
    command: str = "",
    time_limit_s: float = TIME_LIMIT_S,
    on_tuning: OnTuning = lambda kernel, done, total, seconds_left: None,
) -> TileReport:
    """Choose tiles for every family of the spaces, and use them.  "off" times nothing, "force" times all anew.

    `command` is written beside the measurements.  Raises WarmupError if no candidate of a kernel runs.
    """
    target = current_target()
    tables: tuple[tuple[Origin, Table], ...] = (("shipped", shipped(target)), ("cached", read_cached(target)))
    cases = []
    for tunable in TUNABLES:
        families = {family: asking for asking in spaces for family in tunable.families(asking)}
        cases += [
            _Case(tunable, family, space, tunable.candidates(target, family)) for family, space in families.items()
        ]
    known = {case: None if mode == "force" else _stored(case, tables) for case in cases}
    tuner = _Tuner(target, command, time_limit_s, on_tuning)
    if mode != "off":
        tuner.compile([case for case in cases if known[case] is None and len(case.candidates) > 1])
    choices = []
    for case in cases:
        choice = known[case] or (case.default("; tuning is off") if mode == "off" else tuner.choose(case))
        case.tunable.use(case.family, choice.tiles)
        choices.append(choice)
        origin = choice.origin + choice.note
        log.info("tiles", kernel=case.tunable.name, tiles=_in_words(choice.tiles), origin=origin)
    keep(target, tuple(c.entry for c in choices if c.origin == "tuned" and c.entry is not None))
    return TileReport(target, tuple(choices), tuner.seconds, tuner.scratch_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """What one family of shapes of one kernel can choose from."""

    tunable: Tunable[Any, Any]
    family: Any
    space: LaunchSpace
    candidates: tuple[Any, ...]

    def default(self, why: str) -> Choice:
        return Choice(self.tunable.name, self.family, self.candidates[0], "default", why)

    def trial(self, device: torch.device, lengths: tuple[int, ...]) -> Trial:
        return self.tunable.trial(self.space.on(device), self.family, lengths)


def _stored(case: _Case, tables: tuple[tuple[Origin, Table], ...]) -> Choice | None:
    """Only tiles that are still among the candidates: what a file says beyond them was never compiled for this GPU."""
    for origin, table in tables:
        entry = table.find(case.tunable.name, dataclasses.asdict(case.family))
        tiles = next((t for t in case.candidates if entry and dataclasses.asdict(t) == entry.tiles), None)
        current = entry is not None and entry.source == case.tunable.source
        if entry is None or tiles is None or (origin == "cached" and not current):
            continue
        note = f", measured {entry.date} with Triton {entry.versions.get('triton', '?')}"
        note += "" if current else ", on an earlier source of the kernel"
        return Choice(case.tunable.name, case.family, tiles, origin, note, entry)
    return None


def keep(target: Target, entries: tuple[Entry, ...]) -> None:
    """On this machine's disk, if it can be written."""
    if not entries:
        return
    try:
        write_table(cached_path(target), read_cached(target).merged(entries))
    except OSError as error:
        log.warning("tiles not kept", cause=str(error), remedy="set HOTSTART_CACHE to a folder that can be written")


class _Tuner:
    """Compiles and times candidates until its time is up."""

    def __init__(self, target: Target, command: str, time_limit_s: float, on_tuning: OnTuning) -> None:
        self.seconds = 0.0
        self.scratch_bytes = 0
        self._target = target
        self._command = command
        self._time_limit_s = time_limit_s
        self._on_tuning = on_tuning
        self._workers = max(1, (os.cpu_count() or 2) - 1)
        self._device = driver.active.get_active_torch_device()
        self._on_gpu = self._device.type == "cuda"  # a stub's tensors are on the CPU
        self._refused: dict[tuple[_Case, Any], str] = {}  # what was compiled, and why it cannot be launched, or ""

    @property
    def _seconds_left(self) -> float:
        return self._time_limit_s - self.seconds

    def compile(self, cases: Sequence[_Case]) -> None:
        """All candidates of all cases, the defaults first, as far as the time for it goes."""
        start, total = time.perf_counter(), sum(len(case.candidates) for case in cases)
        places = range(max((len(case.candidates) for case in cases), default=0))
        queue = [(case, case.candidates[i]) for i in places for case in cases if i < len(case.candidates)]
        trials = {case: case.trial(_META, self._fitting(case, case.tunable.shapes[0])) for case in cases}
        step = 2 * self._workers
        for first in range(0, total, step):
            if first and self.seconds > COMPILE_SHARE * self._time_limit_s:
                break
            records: dict[tuple[_Case, Any], Recording] = {}
            with ThreadPoolExecutor(self._workers) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
                for case, tiles in queue[first : first + step]:
                    with recording() as records[case, tiles], case.tunable.using(case.family, tiles):
                        trials[case].call()
            self._refused |= {key: self._refusal(record) for key, record in records.items()}
            if self._on_gpu:  # a load that fails fails again when it is timed, which says so
                fitting = [record for key, record in records.items() if not self._refused[key]]
                load(
                    [_finished(b) for record in fitting for b in record.binaries.values()], self._device, self._workers
                )
            self.seconds = time.perf_counter() - start
            self._on_tuning("kernels, compiling", len(self._refused), total, max(self._seconds_left, 0.0))

    def _refusal(self, record: Recording) -> str:
        for key, binary in record.binaries.items():
            try:
                shared = _finished(binary).metadata.shared
            except (TritonError, RuntimeError) as error:
                return f"{key.kernel} does not compile: {error}"
            if shared > self._target.shared_bytes:
                return f"{key.kernel} needs {shared} bytes of shared memory, the GPU has {self._target.shared_bytes}"
        return ""

    def choose(self, case: _Case) -> Choice:
        if len(case.candidates) == 1:
            return case.default("; there is no other")
        refused = {tiles: why for (its, tiles), why in self._refused.items() if its is case and why}
        if len(refused) == len(case.candidates):
            name = case.tunable.name
            raise WarmupError(f"{name}: none of {len(refused)} tiles runs on {self._target.gpu}: {refused}")
        if self._seconds_left <= 0:
            return case.default(f"; the {self._time_limit_s:.0f} s of tuning were over")
        free = torch.cuda.mem_get_info()[0] if self._on_gpu else SCRATCH_BYTES
        if free < SCRATCH_BYTES:
            return case.default(f"; {free >> 20} MiB are free, tuning takes {SCRATCH_BYTES >> 20} MiB")
        start, before = time.perf_counter(), torch.cuda.memory_allocated() if self._on_gpu else 0
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        choice = self._fastest(case, start + self._seconds_left)
        if self._on_gpu:
            self.scratch_bytes = max(self.scratch_bytes, torch.cuda.max_memory_allocated() - before)
            torch.cuda.empty_cache()
        self.seconds += time.perf_counter() - start
        return choice

    def _fastest(self, case: _Case, end: float) -> Choice:
        times: dict[Any, dict[str, float]] = {}
        running = [tiles for tiles in case.candidates if self._refused.get((case, tiles)) == ""]
        for lengths in case.tunable.shapes:
            lengths = self._fitting(case, lengths)
            trial = case.trial(self._device, lengths)
            if not times:
                glances = {t: us for t in running if (us := self._time(case, t, trial, end, glance=True)) is not None}
                limit = GLANCE_LIMIT * min(glances.values(), default=0.0)
                running = [t for t, us in glances.items() if us <= limit or t == case.candidates[0]]
            for tiles in running:
                us = self._time(case, tiles, trial, end)
                if us is not None:
                    times.setdefault(tiles, {})[shape_name(lengths)] = us
        left = max(end - time.perf_counter(), 0.0)
        self._on_tuning(case.tunable.name, len(times), len(case.candidates), left)
        default = case.candidates[0]
        complete = {tiles: us for tiles, us in times.items() if len(us) == len(case.tunable.shapes)}
        if default not in complete and self._refused.get((case, default), "") == "":
            return case.default(f"; {self._time_limit_s:.0f} s were too short to time it")
        return self._choice(case, complete)

    def _time(self, case: _Case, tiles: Any, trial: Trial, end: float, *, glance: bool = False) -> float | None:
        """Microseconds; None once the time is up, or for what only the launch refuses: too many registers."""
        key = case, tiles
        if self._refused.get(key) or time.perf_counter() > end:
            return None
        warmup, rep = (1, 3) if glance else (3, 12)
        try:
            with case.tunable.using(case.family, tiles):
                ms = triton.testing.do_bench(trial.call, warmup=warmup, rep=rep, return_mode="median")
        except TritonError as error:
            self._refused[key] = str(error)
            return None
        return round(float(ms) * 1000, 2)

    def _choice(self, case: _Case, times: dict[Any, dict[str, float]]) -> Choice:
        scores = {tiles: math.prod(us.values()) ** (1 / len(us)) for tiles, us in times.items()}
        limit = min(scores.values()) * (1 + TOLERANCE)
        winner = next(tiles for tiles in case.candidates if scores.get(tiles, math.inf) <= limit)
        entry = Entry(
            kernel=case.tunable.name,
            family=dataclasses.asdict(case.family),
            tiles=dataclasses.asdict(winner),
            us=times[winner],
            default_us=times.get(case.candidates[0], times[winner]),
            date=date.today().isoformat(),
            command=self._command or "hotstart",
            versions=self._target.versions,
            source=case.tunable.source,
        )
        note = f", {entry.gain:.2f} times as fast as the default; {len(times)} of {len(case.candidates)} timed in full"
        return Choice(case.tunable.name, case.family, winner, "tuned", note, entry)

    def _fitting(self, case: _Case, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """The declared shape, made smaller until its tensors keep within the bound."""
        while (size := _num_bytes(case.trial(_META, lengths))) > INPUT_BYTES:
            assert sum(lengths) > 2, f"{case.tunable.name}: one prompt of {lengths} needs {size} bytes"
            lengths = lengths[: len(lengths) // 2] if len(lengths) > 1 else (lengths[0] // 2,)
        self.scratch_bytes = max(self.scratch_bytes, size)
        return lengths


def _finished(binary: Any) -> Any:
    """Wait for a compile."""
    return binary.result() if hasattr(binary, "result") else binary


def shape_name(lengths: tuple[int, ...]) -> str:
    return f"{len(lengths)}x{max(lengths)}"


def _num_bytes(trial: Trial) -> int:
    return sum(tensor.nbytes for tensor in trial.scratch)


def _in_words(values: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in dataclasses.asdict(values).items())
