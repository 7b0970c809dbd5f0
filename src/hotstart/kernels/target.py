"""The GPU that kernels are compiled and tuned for, and the versions on which a measurement depends."""

import ctypes
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.runtime import driver

from hotstart import __version__
from hotstart.errors import StartupError
from hotstart.kernels.dry import DryDriver

__all__ = ["Target", "active_driver", "current_target"]


class Target(NamedTuple):
    gpu: str  # as the driver calls it: NVIDIA H200
    arch: int  # 90 for sm_90
    shared_bytes: int  # the most that one program may ask for
    multiprocessors: int
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


_INTERPRETER = Target("interpreter", 80, 163 * 1024, 100, "none")


def active_driver() -> Any:
    """Triton's, of a GPU or of a stub."""
    try:
        return driver.active
    except RuntimeError as cause:
        raise StartupError(
            "Triton finds no GPU here; run under hotstart.kernels.dry.gpu(NAME) to compile for one, "
            "or choose --kernel-backend torch"
        ) from cause


def current_target() -> Target:
    """Needs an active driver, real or stub; in Triton's interpreter it is a stand-in."""
    return _INTERPRETER if knobs.runtime.interpret else _target_of(active_driver().get_current_device())


@functools.cache  # each stub is a device of its own, so the number is enough
def _target_of(device: int) -> Target:
    active = driver.active
    has = active.utils.get_device_properties(device)
    sizes = int(active.get_current_target().arch), has["max_shared_mem"], has["multiprocessor_count"]
    if isinstance(active, DryDriver):
        return Target(active.stand_in.product, *sizes, "stub")
    return Target(torch.cuda.get_device_name(), *sizes, _driver_version())


def _driver_version() -> str:
    report = Path("/proc/driver/nvidia/version")
    if report.exists() and (match := re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", report.read_text())):
        return match[1]
    number = ctypes.c_int()  # elsewhere, as on WSL, the newest CUDA that the driver speaks
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
