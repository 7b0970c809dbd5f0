"""A Triton driver without a GPU: compiles for any NVIDIA architecture, launches nothing.

    with dry.gpu("rtx5090"):        # or "sm_120", or "sm_120:99KiB"
        warm_up(space)              # real keys, real compiler and assembler, real shared-memory limits

What is real: Triton's specialisation and keys, its compiler, ptxas, the shared memory of each binary against the
limit of the GPU, the autotuner's control flow.  What is not: launches (nothing runs), times (invented, always the
same), bytes.  Tensors under the stub are CPU tensors.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import triton.testing
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner

from hotstart.kernels.gpus import GPUS, Gpu, parse_gpu

__all__ = ["GPUS", "Gpu", "gpu", "parse_gpu", "torch_answers"]

KIB = 1024


@contextmanager
def gpu(name: str) -> Iterator[Gpu]:
    """Let Triton believe that this GPU is here."""
    stand_in = parse_gpu(name)
    init_handles = CompiledKernel._init_handles

    def init_and_never_unload(binary: Any) -> None:
        init_handles(binary)
        binary._module_pid = None  # else Triton 3.9 unloads it, by whatever driver is active by then

    with (
        # Invented times must not reach the disk, where a real GPU of this kind would take them for its own.
        _replaced(Autotuner, check_disk_cache=_measure_always),
        _replaced(triton.testing, do_bench=_do_bench),
        _replaced(CompiledKernel, _init_handles=init_and_never_unload),
        _replaced(driver, _active=DryDriver(stand_in)),
    ):
        yield stand_in


@contextmanager
def _replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def torch_answers(stand_in: Gpu) -> Iterator[None]:
    """Libraries ask torch.cuda what GPU this is when they are imported; `is_available()` stays False."""
    properties = SimpleNamespace(
        name=f"NVIDIA {stand_in.name} (stub)",
        major=stand_in.arch // 10,
        minor=stand_in.arch % 10,
        multi_processor_count=stand_in.multiprocessors,
        shared_memory_per_block=48 * KIB,
        shared_memory_per_block_optin=stand_in.shared_bytes,
        total_memory=32 << 30,
        warp_size=32,
    )
    with _replaced(
        torch.cuda,
        get_device_name=lambda device=None: properties.name,
        get_device_capability=lambda device=None: (properties.major, properties.minor),
        get_device_properties=lambda device=None: properties,
        device_count=lambda: 1,
        current_device=lambda: 0,
    ):
        yield


_devices = itertools.count(1_000)


class _Utils:
    """What Triton asks of a device."""

    def __init__(self, stand_in: Gpu) -> None:
        self.stand_in = stand_in

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.stand_in.shared_bytes,
            "max_num_regs": 65536,
            "multiprocessor_count": self.stand_in.multiprocessors,
            "warpSize": 32,
            "sm_clock_rate": 1_500_000,
            "mem_clock_rate": 1_500_000,
            "mem_bus_width": 512,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[object, object, int, int, int]:
        """Module, function, registers, spills, most threads: the last three are known on a device only."""
        assert binary, f"{name} has no binary"
        return name, name, 0, 0, 1024


class DryDriver:
    """Stands in for triton.backends.nvidia.driver.CudaDriver.  Each one is a device of its own in Triton's caches."""

    def __init__(self, stand_in: Gpu) -> None:
        self.stand_in = stand_in
        self.utils = _Utils(stand_in)
        self.device = next(_devices)

    @staticmethod
    def is_active() -> bool:
        return True

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return _launch_nothing

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.stand_in.arch, 32)

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(self.stand_in.arch, 10)

    def get_current_device(self) -> int:
        return self.device

    def set_current_device(self, device: int) -> None:
        assert device == self.device, f"this stub has one device, {self.device}"

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        # Looked up when called, so that a watch that wraps it later is asked too.
        return lambda *args, **keywords: triton.testing.do_bench(*args, **keywords)

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(0)

    def clear_cache(self, cache: torch.Tensor) -> None:
        """There is none."""

    def assemble_tensormap_to_arg(self, tensormaps_info: Any, args: Any) -> Any:
        return args


def _launch_nothing(*args: Any, **keywords: Any) -> None:
    """A launch on a GPU that is not here."""


def _measure_always(tuner: Any, tuning_key: object, configs: object, measure: Callable[[], None]) -> bool:
    measure()
    return False


def _do_bench(
    kernel_call: Callable[[], object], *args: Any, quantiles: Sequence[float] | None = None, **keywords: Any
) -> list[float] | float:
    """Compile and launch once; all configurations tie, and the autotuner takes the first that fits."""
    kernel_call()
    return [1.0 for _ in quantiles] if quantiles else 1.0
