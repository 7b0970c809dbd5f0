"""The warm-up in stages: enumerate on meta tensors, compile side by side, load, launch on small real tensors."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import triton

from hotstart import log
from hotstart.errors import WarmupError
from hotstart.kernels.key import LaunchKey
from hotstart.kernels.launch import LAUNCHERS, Recording, recording
from hotstart.kernels.space import LaunchSpace
from hotstart.kernels.target import active_driver

__all__ = ["Binary", "WarmupReport", "load", "warm_up"]


@dataclass(frozen=True, slots=True)
class Binary:
    key: LaunchKey
    compile_s: float  # 0 if it was compiled before
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class WarmupReport:
    target: str
    binaries: tuple[Binary, ...]
    compile_s: float  # enumerate and compile, wall time
    launch_s: float  # load and launch

    @property
    def keys(self) -> frozenset[LaunchKey]:
        return frozenset(binary.key for binary in self.binaries)


class _TimedPool(ThreadPoolExecutor):
    """Compiles in parallel, and remembers how long each binary took."""

    def __init__(self, workers: int, record: Recording) -> None:
        super().__init__(workers, thread_name_prefix="hotstart-compile")
        self.record = record
        self.seconds: dict[LaunchKey, float] = {}

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        key = self.record.last
        assert key is not None, "a compile without a launch"

        def timed() -> Any:
            start = time.perf_counter()
            result = function(*args, **keywords)
            self.seconds[key] = time.perf_counter() - start
            return result

        return super().submit(timed)


def warm_up(space: LaunchSpace, *, workers: int | None = None) -> WarmupReport:
    """Compile, load and launch every binary that the registered kernels can need; then nothing is left to do late.

    First on meta tensors, compiling for the active target in parallel (finished binaries come from Triton's cache on
    disk); then the same calls on small real tensors, which must ask for the same keys.  A failure is a WarmupError
    that names the kernel, the key and the cause.
    """
    workers = workers or max(1, (os.cpu_count() or 2) - 1)
    active = active_driver()
    target = active.get_current_target()
    warmups = list(dict.fromkeys(launcher.warmup for launcher in LAUNCHERS))
    start = time.perf_counter()
    # Errors are raised below, by key, and not by whichever compile fails first.
    with (
        recording() as planned,
        _TimedPool(workers, planned) as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        for warmup in warmups:
            _call(warmup, space.on(torch.device("meta")), planned)
        compiled = {key: _finish(key, binary, "compile") for key, binary in planned.binaries.items()}
    compile_s = time.perf_counter() - start
    device = active.get_active_torch_device()
    if device.type == "cuda":
        for key, loaded in zip(compiled, load([*compiled.values()], device, workers), strict=True):
            _finish(key, loaded, "load")
    with recording() as launched:
        for warmup in warmups:
            _call(warmup, space.on(device), launched)
    for key in planned.counts.keys() ^ launched.counts.keys():
        there, missing = ("meta", "real") if key in planned.counts else ("real", "meta")
        raise WarmupError(f"{key} is launched on {there} tensors only; the warm-up must not differ on {missing} ones")
    launch_s = time.perf_counter() - start - compile_s
    binaries = tuple(
        Binary(key, pool.seconds.get(key, 0.0), binary.metadata.shared) for key, binary in compiled.items()
    )
    report = WarmupReport(f"sm_{target.arch}", binaries, compile_s, launch_s)
    log.info("kernels warmed", target=report.target, binaries=len(binaries), compile_s=compile_s, launch_s=launch_s)
    return report


def _call(warmup: Callable[[LaunchSpace], None], space: LaunchSpace, record: Recording) -> None:
    record.last = None
    try:
        warmup(space)
        if space.device.type == "cuda":
            torch.cuda.synchronize()  # a fault shows here, not in a later kernel's turn
    except Exception as cause:  # whatever a kernel or Triton raises: start-up ends, and says where
        where = record.last or f"{warmup.__module__}.{warmup.__qualname__}, before its first launch"
        raise WarmupError(f"warm-up failed at {where} on {space.device}: {type(cause).__name__}: {cause}") from cause


def load(binaries: Sequence[Any], device: torch.device, workers: int) -> list[Future[Any]]:
    """Side by side: up to Triton 3.6 each loads a launcher that the C compiler makes for it.  All are done."""
    with ThreadPoolExecutor(workers, initializer=torch.cuda.set_device, initargs=(device,)) as pool:
        return [pool.submit(getattr, binary, "run") for binary in binaries]


def _finish(key: LaunchKey, work: Any, verb: str) -> Any:
    """Wait for a compile or a load."""
    try:
        return work.result() if hasattr(work, "result") else work
    except Exception as cause:  # of the compiler or the driver, which have no type in common: raised again, by key
        raise WarmupError(f"cannot {verb} {key}: {type(cause).__name__}: {cause}") from cause
