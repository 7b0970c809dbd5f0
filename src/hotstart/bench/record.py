"""What stands beside every figure: where it was taken, with what, by which command."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from hotstart import __version__
from hotstart.engine.device import Device
from hotstart.engine.kernels import command_line

__all__ = ["commit", "facts", "gpu_state", "last_name", "process_seconds"]

PACKAGES = ("torch", "triton", "flash-linear-attention", "flashinfer-python")


def facts(device: Device) -> dict[str, Any]:
    return {
        "command": command_line(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": _device(device),
        **(gpu_state(device.torch_device) if device.kind == "cuda" else {}),
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"hotstart": __version__} | {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit(),
    }


def commit() -> str | None:
    """Of the checkout that this runs from; of a copy of one, HOTSTART_COMMIT tells it."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return os.environ.get("HOTSTART_COMMIT")
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def last_name(value: object) -> object:
    """Of a path: this machine's folders are nobody's business."""
    return value.rpartition("/")[2] if isinstance(value, str) else value


def process_seconds() -> float:
    """Since this process began: imports, and whatever came before them."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def _device(device: Device) -> str:
    if device.kind == "cuda":
        return torch.cuda.get_device_name(device.torch_device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def gpu_state(device: torch.device) -> dict[str, str]:
    """Its driver, and its clocks at this moment, where there is NVIDIA's tool."""
    if shutil.which("nvidia-smi") is None:
        return {}
    gpu = str(torch.cuda.get_device_properties(device).uuid)
    query = [
        "nvidia-smi",
        f"--id=GPU-{gpu}",
        "--query-gpu=driver_version,clocks.sm,clocks.mem",
        "--format=csv,noheader",
    ]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().split(", ")
    return {"driver": told[0], "clocks_mhz_sm_mem": ", ".join(told[1:])} if len(told) == 3 else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
