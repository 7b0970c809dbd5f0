"""The seam between the engine and the machine: memory, staging, rungs.  Everything that differs by device is here."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hotstart.config.engine import EngineConfig
from hotstart.engine.heap import keep_freed_memory
from hotstart.engine.meter import Ledger, StepMeter
from hotstart.engine.sizes import Budget, Sizes, rungs
from hotstart.kernels.backends import Backend
from hotstart.kernels.gdn import CPU_CHUNK_LENGTH
from hotstart.kernels.watch import MemoryWatch

__all__ = ["Arena", "CpuDevice", "Device", "Fetched", "Landing", "Peak", "Staging", "machine_memory", "metered_peak"]

CPU_MEMORY_SHARE = 0.5  # of the machine's memory, where the user names no size
ONE_THREAD = 7_000_000  # multiplications: with fewer, threads wait for each other longer than they work


class Arena:
    """Every tensor that outlives a step is allocated here: weights, caches, buffers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ledger = Ledger()

    def allocate(self, owner: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeroed by writing, so that no later request pays for the first touch of its memory."""
        tensor = torch.empty(shape, dtype=dtype, device=self._device).zero_()
        self._ledger.add(tensor, owner)
        return tensor

    def reserved_bytes(self) -> int:
        return self._ledger.live_bytes

    def by_owner(self) -> dict[str, int]:
        return self._ledger.by_owner()


class Staging(Protocol):
    """Host memory that step data is written into, and its image on the device."""

    image: Tensor  # uint8

    def buffer(self) -> np.ndarray:
        """Where the next step's data go, uint8; the step before may still be on its way to the device.

        One of a few arrays, the same objects again and again.
        """

    def upload(self, num_bytes: int) -> None:
        """Copy that buffer's first bytes to the image."""


class Fetched(Protocol):
    def wait(self) -> Sequence[Tensor]:
        """The tensors on the host.  Those of a GPU are overwritten when two more steps have been fetched."""


class Recorder(Protocol):
    """Records what a device is given to do, so that it can be given again as a whole."""

    def record(self, run: Callable[[], object]) -> Callable[[], object]:
        """`run` is called once; the answer repeats what it launched, with the addresses that it had."""

    def taken_bytes(self) -> int:
        """Of the whole device, now."""

    def forget(self) -> None:
        """Give back the memory of all recordings; none of them is called again."""


class Landing(Protocol):
    """Host memory that a step's answers are copied to, without waiting for them."""

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched: ...


@dataclass(slots=True)
class Peak:
    """Filled when the measured block ends."""

    num_bytes: int = 0


class Device(Sizes, Protocol):
    kind: str
    torch_device: torch.device
    arena: Arena
    backend: Backend
    late_kinds: frozenset[str]  # what can happen late here at all: a counter of another kind could never move
    flights: int  # steps under way at once: 2 where the host can plan one while the device runs another

    def budget(self, config: EngineConfig) -> Budget: ...
    def used_bytes(self) -> int:
        """What is taken beside the arena while no step runs."""

    def loaded_bytes(self) -> int | None:
        """The same once all is loaded; None where it cannot be told from what steps take."""

    def used_detail(self) -> str: ...
    def resident_bytes(self) -> int | None: ...
    def reserved_bytes(self) -> int:
        """What must not grow after the seal."""

    def memory_watches(self) -> tuple[MemoryWatch, ...]: ...
    def staging(self, num_bytes: int) -> Staging: ...
    def step_scope(self, multiplications: int) -> AbstractContextManager[None]: ...
    def landing(self, num_bytes: int) -> Landing: ...
    def recorder(self) -> Recorder | None:
        """None where nothing can be recorded."""

    def measure_peak(self) -> AbstractContextManager[Peak]: ...
    def trim(self) -> None:
        """Give back what no tensor needs: what comes to stay is not cut out of it, and pins no more than itself."""

    def hold(self, num_bytes: int) -> None:
        """See to it that steps of this peak find their memory without asking for any."""

    def alive(self) -> bool:
        """Whether the device still computes, once it has finished what it was given."""


class _SharedStaging:
    """On a CPU the image is the buffer itself."""

    def __init__(self, buffer: Tensor) -> None:
        self.image = buffer
        self._array: np.ndarray = buffer.numpy()

    def buffer(self) -> np.ndarray:
        return self._array

    def upload(self, num_bytes: int) -> None:
        """There already."""


class _InPlace:
    """On a CPU answers are on the host already."""

    def __init__(self, tensors: Sequence[Tensor] = ()) -> None:
        self._tensors = tensors

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        return _InPlace(tensors)

    def wait(self) -> Sequence[Tensor]:
        return self._tensors


class CpuDevice:
    kind = "cpu"
    backend: Backend = "torch"
    late_kinds = frozenset({"memory"})
    flights = 1  # a launch computes at once: there is nothing to overlap
    chunk_length = CPU_CHUNK_LENGTH
    slab_rows = 16
    default_num_seqs = 16
    default_num_batched_tokens = 1024
    default_model_len = 4096
    packs_slots = True
    fair_tokens = 64

    def __init__(self, num_threads: int | None = None) -> None:
        self.torch_device = torch.device("cpu")
        self.arena = Arena(self.torch_device)
        keep_freed_memory()
        if num_threads is not None:
            torch.set_num_threads(num_threads)

    def token_rungs(self, limit: int) -> tuple[int, ...]:
        """Fine at small sizes, since a row of padding costs as much as a row."""
        return rungs(limit, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), 64)

    def decode_rungs(self, limit: int) -> tuple[int, ...]:
        return ()

    def row_rungs(self, limit: int) -> tuple[int, ...]:
        return self.token_rungs(limit)

    def budget(self, config: EngineConfig) -> Budget:
        return Budget(*self._limit(config.cpu_memory), "--cpu-memory", config.reserve_bytes)

    def _limit(self, wish: int | None) -> tuple[int, str]:
        if wish is not None:
            return wish, "--cpu-memory"
        machine, available = machine_memory()
        share = int(machine * CPU_MEMORY_SHARE)
        reachable = available + self.used_bytes()
        if reachable < share:
            return reachable, "what the machine has free"
        return share, f"{CPU_MEMORY_SHARE:.0%} of the machine's {machine / 2**30:.1f} GiB"

    def used_bytes(self) -> int:
        """What the process holds beside the arena: the interpreter, the libraries, everything not ours."""
        return max((self.resident_bytes() or 0) - self.arena.reserved_bytes(), 0)

    def loaded_bytes(self) -> int | None:
        return None

    def used_detail(self) -> str:
        return "interpreter and libraries"

    def resident_bytes(self) -> int | None:
        statm = Path("/proc/self/statm")
        if not statm.exists():
            return None
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def reserved_bytes(self) -> int:
        return self.arena.reserved_bytes()

    def memory_watches(self) -> tuple[MemoryWatch, ...]:
        return (MemoryWatch("arena", self.arena.reserved_bytes),)

    def staging(self, num_bytes: int) -> Staging:
        return _SharedStaging(self.arena.allocate("staging", (num_bytes,), torch.uint8))

    def landing(self, num_bytes: int) -> Landing:
        return _InPlace()

    def recorder(self) -> Recorder | None:
        return None

    def trim(self) -> None: ...

    def hold(self, num_bytes: int) -> None:
        """The C heap keeps what a step frees (see heap.py)."""

    def alive(self) -> bool:
        return True

    @contextmanager
    def step_scope(self, multiplications: int) -> Iterator[None]:
        """A small step runs on one thread: to hand its work out costs more than it saves, and waits for a busy core."""
        num_threads = torch.get_num_threads()
        if num_threads == 1 or multiplications >= ONE_THREAD:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)

    def measure_peak(self) -> AbstractContextManager[Peak]:
        return metered_peak()


@contextmanager
def metered_peak() -> Iterator[Peak]:
    """Of what torch's operators create."""
    peak = Peak()
    with StepMeter() as meter:
        yield peak
    peak.num_bytes = meter.peak_bytes


def machine_memory() -> tuple[int, int]:
    """Bytes of the machine, or of the container if that is less; and how many of them are free."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    available = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    info = Path("/proc/meminfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = Path("/sys/fs/cgroup", limit_name), Path("/sys/fs/cgroup", used_name)
        if limit.exists() and limit.read_text().strip().isdigit():
            total = min(total, int(limit.read_text()))
            available = min(available, total - int(used.read_text()))
    return total, available
