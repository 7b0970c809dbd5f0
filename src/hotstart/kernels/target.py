"""The GPU that kernels are compiled and tuned for, and the versions on which a measurement depends."""

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.runtime import driver

from hotstart import __version__
from hotstart.kernels.dry import DryDriver

__all__ = ["Target", "current_target"]


@dataclass(frozen=True, slots=True)
class Target:
    gpu: str  # as the driver calls it: NVIDIA H200
    arch: int  # 90 for sm_90
    shared_bytes: int  # the most that one program may ask for
    driver: str  # version of the driver

    @property
    def versions(self) -> dict[str, str]:
        """What to write beside a measurement."""
        return {
            "hotstart": __version__,
            "torch": str(torch.__version__),
            "triton": triton.__version__,
            "driver": self.driver,
        }


_INTERPRETER = Target("interpreter", 80, 163 * 1024, "none")


def current_target() -> Target:
    """Needs an active driver, real or stub; in Triton's interpreter it is a stand-in."""
    if knobs.runtime.interpret:
        return _INTERPRETER
    active = driver.active
    shared_bytes = active.utils.get_device_properties(active.get_current_device())["max_shared_mem"]
    arch = int(active.get_current_target().arch)
    if isinstance(active, DryDriver):
        return Target(active.stand_in.product, arch, shared_bytes, "stub")
    return Target(torch.cuda.get_device_name(), arch, shared_bytes, _driver_version())


def _driver_version() -> str:
    report = Path("/proc/driver/nvidia/version")
    if report.exists() and (match := re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", report.read_text())):
        return match[1]
    number = ctypes.c_int()  # elsewhere, as on WSL, the newest CUDA that the driver speaks
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
