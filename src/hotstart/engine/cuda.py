"""CudaDevice: an NVIDIA GPU behind the engine's seam.  What steps and their memory ask of torch.cuda is here.

One stream runs all steps, so what a step reads is never overwritten by the next one; the host runs ahead of it by one
step.  Step data and answers pass through pinned buffers, one for each step under way.  After the seal no step asks the
driver for memory: each finds room in the block that `hold` took for the worst of them.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from hotstart.config.engine import EngineConfig
from hotstart.engine.device import Arena, Fetched, Landing, Peak, Recorder, Staging
from hotstart.engine.nvml import Nvml
from hotstart.engine.sizes import Budget, GpuSizes, gpu_budget
from hotstart.errors import ConfigError
from hotstart.kernels.backends import Backend
from hotstart.kernels.watch import MemoryWatch

__all__ = ["CudaDevice", "process_bytes"]

SMALL_BYTES = 32 << 20  # of `hold`, for tensors of up to 1 MiB, which torch's allocator keeps apart
_SMALL_TENSOR = 1 << 20
_ALIGN = 256
MAX_VIEWS = 256  # of a staging buffer


class CudaDevice(GpuSizes):
    kind = "cuda"
    late_kinds = frozenset({"compile", "tuning", "load", "memory"})
    flights = 2

    def __init__(self, backend: Backend, capture_sizes: tuple[int, ...] | None = None) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: PyTorch sees no GPU here (its build, or the driver); use --device cpu")
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self.backend = backend
        if backend == "torch":  # whose attention takes parts of tensors: cuDNN's fails on the addresses of some
            torch.backends.cuda.enable_cudnn_sdp(False)
        # The workspace of cuBLAS comes to stay: now, so that it is not cut out of the memory of a step.  A tensor makes
        # this thread's context, which cuBLAS would warn about.
        torch.zeros(1, device=self.torch_device)
        torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]  # torch's own
        self.arena = Arena(self.torch_device)
        if capture_sizes:
            self.capture_sizes = capture_sizes
        self._nvml = _nvml(self.torch_device)

    def budget(self, config: EngineConfig) -> Budget:
        _, card = torch.cuda.mem_get_info(self.torch_device)
        name = torch.cuda.get_device_name(self.torch_device)
        return gpu_budget(config, card, name, has_display=self._nvml.has_display())

    def used_bytes(self) -> int:
        """What the driver has given out beside the arena, here and to others: contexts, modules, workspaces."""
        self.trim()
        free, card = torch.cuda.mem_get_info(self.torch_device)
        return max(card - free - self.arena.reserved_bytes(), 0)

    def loaded_bytes(self) -> int | None:
        return self.used_bytes()

    def used_detail(self) -> str:
        others = self._others_bytes()
        if others is None:
            return "context, modules, workspaces, and other processes (unattributed)"
        return f"context, modules, workspaces; {others / 2**20:.0f} MiB of it other processes"

    @property
    def tells_processes_apart(self) -> bool:
        """Whether the driver's word on this process is known; else `resident_bytes` is the whole card's."""
        return self._process_bytes() is not None

    def resident_bytes(self) -> int | None:
        """Of this process at driver level; of the whole card where the driver does not tell processes apart."""
        mine = self._process_bytes()
        if mine is not None:
            return mine
        free, card = torch.cuda.mem_get_info(self.torch_device)
        return card - free

    def reserved_bytes(self) -> int:
        """What torch's allocator has from the driver."""
        stats = torch.cuda.memory_stats_as_nested_dict(self.torch_device)
        return int(stats["reserved_bytes"]["all"]["current"]) if stats else 0

    def memory_watches(self) -> tuple[MemoryWatch, ...]:
        return (MemoryWatch("torch reserved", self.reserved_bytes),)

    def staging(self, num_bytes: int) -> Staging:
        image = self.arena.allocate("staging", (num_bytes,), torch.uint8)
        return _PinnedStaging(image, [_pinned(num_bytes) for _ in range(self.flights)])

    def landing(self, num_bytes: int) -> Landing:
        return _PinnedLanding([_pinned(num_bytes) for _ in range(self.flights)])

    def recorder(self) -> Recorder | None:
        return _GraphRecorder(self.torch_device)

    def step_scope(self, multiplications: int) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def measure_peak(self) -> Iterator[Peak]:
        peak = Peak()
        self.trim()
        filled = self._fill_gaps()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_reserved(self.torch_device)
        yield peak
        torch.cuda.synchronize(self.torch_device)
        peak.num_bytes = torch.cuda.max_memory_reserved(self.torch_device) - before + SMALL_BYTES
        del filled

    def _fill_gaps(self) -> list[Tensor]:
        """What is free between tensors that stay is not for steps: before they come, caches may have taken it."""
        gaps = [
            block["size"]
            for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]  # torch's own
            if segment["device"] == self.torch_device.index and segment["segment_type"] == "large"
            for block in segment["blocks"]
            if block["state"] == "inactive" and segment.get("segment_pool_id", (0, 0)) == (0, 0)
        ]
        # The smallest block that is large enough is given: from the largest on, each gap gets what is as large.
        return [torch.empty(size, dtype=torch.uint8, device=self.torch_device) for size in sorted(gaps, reverse=True)]

    def trim(self) -> None:
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.empty_cache()

    def hold(self, num_bytes: int) -> None:
        """Take what the worst step needs from the driver and give it to torch's allocator: steps find it there."""
        self.trim()
        sizes = [_SMALL_TENSOR] * (SMALL_BYTES // _SMALL_TENSOR) + [max(num_bytes - SMALL_BYTES, 0)]
        held = [torch.empty(size, dtype=torch.uint8, device=self.torch_device) for size in sizes]
        del held

    def alive(self) -> bool:
        """Wait for all that runs; False if the context is lost, and with it everything on the device."""
        try:
            torch.cuda.synchronize(self.torch_device)
        except RuntimeError:
            return False
        return True

    def _process_bytes(self) -> int | None:
        return _bytes_of_this_process(self._nvml)

    def _others_bytes(self) -> int | None:
        """None if the driver does not show this process (as in a container) or does not tell processes apart."""
        processes = self._nvml.processes()
        if os.getpid() not in [pid for pid, used in processes if used]:
            return None
        return sum(used or 0 for pid, used in processes if pid != os.getpid())


def process_bytes(device_index: int) -> int | None:
    """What the driver counts for this process on a GPU; None where it does not tell."""
    return _bytes_of_this_process(_nvml(torch.device("cuda", device_index)))


def _nvml(device: torch.device) -> Nvml:
    return Nvml(str(torch.cuda.get_device_properties(device).uuid))


def _bytes_of_this_process(nvml: Nvml) -> int | None:
    found = [used for pid, used in nvml.processes() if pid == os.getpid() and used]
    return found[0] if found else None


class _GraphRecorder:
    """CUDA graphs, whose memory is one pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], object]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay

    def taken_bytes(self) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        free, card = torch.cuda.mem_get_info(self._device)
        return card - free

    def forget(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()


def _pinned(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own


class _PinnedStaging:
    def __init__(self, image: Tensor, hosts: list[Tensor]) -> None:
        self.image = image
        self._hosts = hosts
        self._arrays: list[np.ndarray] = [host.numpy() for host in hosts]
        self._copied = [_event() for _ in hosts]
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # views cost as much as the copy
        self._at = 0

    def buffer(self) -> np.ndarray:
        self._at = (self._at + 1) % len(self._hosts)
        self._copied[self._at].synchronize()  # over long ago, but for a step that failed
        return self._arrays[self._at]

    def upload(self, num_bytes: int) -> None:
        views = self._views.get((self._at, num_bytes))
        if views is None:
            if len(self._views) == MAX_VIEWS:
                self._views.clear()
            views = self.image[:num_bytes], self._hosts[self._at][:num_bytes]
            self._views[self._at, num_bytes] = views
        views[0].copy_(views[1], non_blocking=True)
        self._copied[self._at].record()


class _PinnedLanding:
    def __init__(self, hosts: list[Tensor]) -> None:
        self._hosts = hosts
        self._events = [_event() for _ in hosts]
        self._at = 0

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        self._at = (self._at + 1) % len(self._hosts)
        host, event, at = self._hosts[self._at], self._events[self._at], 0
        event.synchronize()  # over long ago, but for a step that failed
        copies = []
        for tensor in tensors:
            end = at + tensor.numel() * tensor.element_size()
            assert end <= len(host), f"answers of {end} bytes exceed the landing buffer of {len(host)}"
            copy = host[at:end].view(tensor.dtype).view(tensor.shape)
            copy.copy_(tensor, non_blocking=True)
            copies.append(copy)
            at = math.ceil(end / _ALIGN) * _ALIGN
        event.record()
        return _PinnedFetched(copies, event)


class _PinnedFetched:
    def __init__(self, copies: list[Tensor], event: torch.cuda.Event) -> None:
        self._copies = copies
        self._event = event

    def wait(self) -> Sequence[Tensor]:
        self._event.synchronize()
        return self._copies
