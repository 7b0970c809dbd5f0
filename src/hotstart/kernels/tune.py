"""resolve(): which tiles each kernel uses on this GPU, settled before the warm-up compiles anything.

    a table shipped with the package -> this machine's cache -> timed now -> the safe default

Timing calls the real op with each candidate, through its Launchers, on scratch memory of bounded size and for a bounded
time.  The winner is the fastest over all declared shapes; candidates within the tolerance of it tie, and the first in
declared order wins, so that noise does not choose.  Winners go to the disk: the next start times nothing.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
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

__all__ = ["SCRATCH_BYTES", "Choice", "OnTuning", "TileReport", "TuneMode", "keep", "resolve", "shape_name"]

TuneMode = Literal["auto", "off", "force"]
Origin = Literal["shipped", "cached", "tuned", "default"]
OnTuning = Callable[[str, int, int, float], None]  # kernel, candidates done, all of them, seconds left

TIME_LIMIT_S = 60.0
INPUT_BYTES = 256 << 20  # of a trial's tensors
# Beside them: what the op itself takes, and the buffer with which Triton's benchmark empties the caches.
SCRATCH_BYTES = INPUT_BYTES + (128 << 20) + (256 << 20)
TOLERANCE = 0.02
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
    tuner = _Tuner(target, command, time_limit_s, on_tuning)
    tables: tuple[tuple[Origin, Table], ...] = (("shipped", shipped(target)), ("cached", read_cached(target)))
    choices = []
    for tunable in TUNABLES:
        families = {family: asking for asking in spaces for family in tunable.families(asking)}
        for family, space in families.items():
            choice = None if mode == "force" else _stored(tunable, family, target, tables)
            if choice is None and mode != "off":
                choice = tuner.choose(tunable, family, space)
            choice = choice or _default(tunable, family, "; tuning is off")
            tunable.use(family, choice.tiles)
            choices.append(choice)
            log.info("tiles", kernel=tunable.name, tiles=_in_words(choice.tiles), origin=choice.origin + choice.note)
    keep(target, tuple(c.entry for c in choices if c.origin == "tuned" and c.entry is not None))
    return TileReport(target, tuple(choices), tuner.seconds, tuner.scratch_bytes)


def _stored(
    tunable: Tunable[Any, Any], family: Any, target: Target, tables: tuple[tuple[Origin, Table], ...]
) -> Choice | None:
    """Only tiles that are still among the candidates: what a file says beyond them was never compiled for this GPU."""
    candidates = tunable.candidates(target, family)
    for origin, table in tables:
        entry = table.find(tunable.name, dataclasses.asdict(family))
        tiles = next((t for t in candidates if entry and dataclasses.asdict(t) == entry.tiles), None)
        current = entry is not None and entry.source == tunable.source
        if entry is None or tiles is None or (origin == "cached" and not current):
            continue
        note = f", measured {entry.date} with Triton {entry.versions.get('triton', '?')}"
        note += "" if current else ", on an earlier source of the kernel"
        return Choice(tunable.name, family, tiles, origin, note, entry)
    return None


def _default(tunable: Tunable[Any, Any], family: Any, why: str) -> Choice:
    return Choice(tunable.name, family, tunable.default(family), "default", why)


def keep(target: Target, entries: tuple[Entry, ...]) -> None:
    """On this machine's disk, if it can be written."""
    if not entries:
        return
    try:
        write_table(cached_path(target), read_cached(target).merged(entries))
    except OSError as error:
        log.warning("tiles not kept", cause=str(error), remedy="set HOTSTART_CACHE to a folder that can be written")


class _Tuner:
    """Times candidates until its time is up."""

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

    def choose(self, tunable: Tunable[Any, Any], family: Any, space: LaunchSpace) -> Choice:
        self._space = space
        candidates = tunable.candidates(self._target, family)
        if len(candidates) == 1:
            return _default(tunable, family, "; there is no other")
        if self._seconds_left <= 0:
            return _default(tunable, family, f"; the {self._time_limit_s:.0f} s of tuning were over")
        free = torch.cuda.mem_get_info()[0] if self._on_gpu else SCRATCH_BYTES
        if free < SCRATCH_BYTES:
            return _default(tunable, family, f"; {free >> 20} MiB are free, tuning takes {SCRATCH_BYTES >> 20} MiB")
        start, before = time.perf_counter(), torch.cuda.memory_allocated() if self._on_gpu else 0
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        choice = self._fastest(tunable, family, candidates)
        if self._on_gpu:
            self.scratch_bytes = max(self.scratch_bytes, torch.cuda.max_memory_allocated() - before)
            torch.cuda.empty_cache()
        self.seconds += time.perf_counter() - start
        return choice

    @property
    def _seconds_left(self) -> float:
        return self._time_limit_s - self.seconds

    def _fastest(self, tunable: Tunable[Any, Any], family: Any, candidates: tuple[Any, ...]) -> Choice:
        end = time.perf_counter() + self._seconds_left
        shapes = {shape_name(lengths): lengths for lengths in self._fitting(tunable, family)}
        times: dict[Any, dict[str, float]] = {}
        refused: dict[Any, str] = {}
        for first in range(0, len(candidates), self._workers):
            group = candidates[first : first + self._workers]
            lengths = next(iter(shapes.values()))
            refused |= self._refused_by_the_compiler(tunable, family, group, lengths)
            for tiles, label, us in self._timed(tunable, family, [t for t in group if t not in refused], shapes, end):
                if isinstance(us, str):
                    refused[tiles] = us
                else:
                    times.setdefault(tiles, {})[label] = us
            left = end - time.perf_counter()
            self._on_tuning(tunable.name, len(refused) + len(times), len(candidates), max(left, 0.0))
            if left <= 0:
                break
        if len(refused) == len(candidates):
            raise WarmupError(f"{tunable.name}: none of {len(candidates)} tiles runs on {self._target.gpu}: {refused}")
        complete = {tiles: us for tiles, us in times.items() if len(us) == len(shapes) and tiles not in refused}
        if candidates[0] not in complete and candidates[0] not in refused:
            return _default(tunable, family, f"; {self._time_limit_s:.0f} s were too short to time it")
        return self._choice(tunable, family, complete, candidates)

    def _choice(
        self, tunable: Tunable[Any, Any], family: Any, times: dict[Any, dict[str, float]], candidates: Sequence[Any]
    ) -> Choice:
        scores = {tiles: math.prod(us.values()) ** (1 / len(us)) for tiles, us in times.items()}
        limit = min(scores.values()) * (1 + TOLERANCE)
        winner = next(tiles for tiles in candidates if scores.get(tiles, math.inf) <= limit)
        entry = Entry(
            kernel=tunable.name,
            family=dataclasses.asdict(family),
            tiles=dataclasses.asdict(winner),
            us=times[winner],
            default_us=times.get(candidates[0], times[winner]),
            date=date.today().isoformat(),
            command=self._command or "hotstart",
            versions=self._target.versions,
            source=tunable.source,
        )
        note = f", {entry.gain:.2f} times as fast as the default; {len(times)} of {len(candidates)} candidates timed"
        return Choice(tunable.name, family, winner, "tuned", note, entry)

    def _fitting(self, tunable: Tunable[Any, Any], family: Any) -> Iterator[tuple[int, ...]]:
        """The declared shapes, made smaller until their tensors keep within the bound."""
        for lengths in tunable.shapes:
            while (size := _num_bytes(tunable.trial(self._space.on(_META), family, lengths))) > INPUT_BYTES:
                assert sum(lengths) > 2, f"{tunable.name}: one prompt of {lengths} needs {size} bytes"
                lengths = lengths[: len(lengths) // 2] if len(lengths) > 1 else (lengths[0] // 2,)
            self.scratch_bytes = max(self.scratch_bytes, size)
            yield lengths

    def _refused_by_the_compiler(
        self, tunable: Tunable[Any, Any], family: Any, group: Sequence[Any], lengths: tuple[int, ...]
    ) -> dict[Any, str]:
        """Compile a group in parallel on meta tensors: those over a limit of the GPU are never launched."""
        trial = tunable.trial(self._space.on(_META), family, lengths)
        records: dict[Any, Recording] = {}
        with ThreadPoolExecutor(self._workers) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
            for tiles in group:
                with recording() as records[tiles], tunable.using(family, tiles):
                    trial.call()
        return {tiles: why for tiles, record in records.items() if (why := self._refusal(record))}

    def _refusal(self, record: Recording) -> str:
        for key, binary in record.binaries.items():
            try:
                shared = (binary.result() if hasattr(binary, "result") else binary).metadata.shared
            except (TritonError, RuntimeError) as error:
                return f"{key.kernel} does not compile: {error}"
            if shared > self._target.shared_bytes:
                return f"{key.kernel} needs {shared} bytes of shared memory, the GPU has {self._target.shared_bytes}"
        return ""

    def _timed(
        self,
        tunable: Tunable[Any, Any],
        family: Any,
        group: Sequence[Any],
        shapes: dict[str, tuple[int, ...]],
        end: float,
    ) -> Iterator[tuple[Any, str, float | str]]:
        """Tiles, shape, and microseconds or why there are none."""
        space = self._space.on(self._device)
        for label, lengths in shapes.items():
            trial = tunable.trial(space, family, lengths)
            for tiles in group:
                if time.perf_counter() > end:
                    return
                try:
                    with tunable.using(family, tiles):
                        ms = triton.testing.do_bench(trial.call, warmup=5, rep=25, return_mode="median")
                except TritonError as error:  # a limit that only the launch knows: registers
                    yield tiles, label, str(error)
                else:
                    yield tiles, label, round(ms * 1000, 2)


def shape_name(lengths: tuple[int, ...]) -> str:
    return f"{len(lengths)}x{max(lengths)}"


def _num_bytes(trial: Trial) -> int:
    return sum(tensor.nbytes for tensor in trial.scratch)


def _in_words(values: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in dataclasses.asdict(values).items())
