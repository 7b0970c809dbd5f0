"""What a machine has for hotstart: one finding a line, each with what to do about it if it is not as it should be."""

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from hotstart import __version__
from hotstart.engine.memory import as_size

__all__ = ["Finding", "State", "examine"]

State = Literal["ok", "note", "missing"]  # a note is a choice one has; what is missing keeps hotstart from running

OLDEST_PYTHON, OLDEST_TORCH, OLDEST_TRITON = (3, 11), (2, 11), (3, 6)
OLDEST_CAPABILITY = (8, 0)
FREE_DISK_BYTES = 10 * 2**30
OPEN_FILES = 1024
OPTIONAL = {
    "flash-linear-attention": "--gdn-prefill-backend fla: pip install 'flash-linear-attention>=0.6'",
    "flashinfer-python": "--gdn-prefill-backend flashinfer, on Hopper: pip install 'flashinfer-python>=0.6.13'",
}
CPU_BUILD = "pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu"
CUDA_BUILD = "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    state: State
    text: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """In the order in which one thing needs the other."""
    for look in (_python, _torch, _gpus, _triton, _compiler, _optional, _caches, _memory, _files, _choice):
        yield from look()


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    is_new = sys.version_info[:2] >= OLDEST_PYTHON
    remedy = "" if is_new else "install Python 3.11 or newer: make PYTHON=python3.11 install"
    yield Finding("python", "ok" if is_new else "missing", f"{version} at {sys.executable}", remedy)
    yield Finding("hotstart", "ok", f"{__version__} at {Path(__file__).parents[1]}")
    yield Finding("system", "ok", f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors")


def _torch() -> Iterator[Finding]:
    found = _version("torch")
    if found is None:
        remedy = f"{CPU_BUILD}   (without a GPU), or {CUDA_BUILD}"
        yield Finding("pytorch", "missing", "not installed", remedy)
    elif _numbers(found) < OLDEST_TORCH:
        yield Finding("pytorch", "missing", f"{found}, older than 2.11", CUDA_BUILD if _driver() else CPU_BUILD)
    else:
        try:
            import torch
        except (ImportError, OSError) as error:
            reason = str(error).partition("\n")[0]
            yield Finding("pytorch", "missing", f"{found} cannot be imported: {reason}", "install it again")
            return
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
        yield Finding("pytorch", "ok", f"{found}, its {build} build, {torch.get_num_threads()} threads")


def _gpus() -> Iterator[Finding]:
    driver = _driver()
    torch = _imported("torch")
    if torch is None or not torch.cuda.is_available():
        if driver is None:
            yield Finding("gpu", "note", "no NVIDIA driver here", "a CPU serves small models; check compiles for GPUs")
        elif torch is not None and torch.version.cuda is None:
            yield Finding("gpu", "note", f"driver {driver}, but this PyTorch is for CPUs", CUDA_BUILD)
        else:
            remedy = "look at nvidia-smi, at CUDA_VISIBLE_DEVICES, and whether the driver is new enough for PyTorch"
            yield Finding("gpu", "note", f"driver {driver}, but PyTorch sees no GPU", remedy)
        return
    yield Finding("driver", "ok", driver or "unknown version")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        free, total = torch.cuda.mem_get_info(index)
        text = f"{properties.name}, sm_{capability[0]}{capability[1]}, {as_size(free)} of {as_size(total)} free"
        is_new = capability >= OLDEST_CAPABILITY
        remedy = "" if is_new else "kernels need compute capability 8.0 (Ampere) or newer"
        yield Finding(f"gpu {index}", "ok" if is_new else "note", text, remedy)
    yield _tiles()


def _tiles() -> Finding:
    from hotstart.kernels.target import current_target
    from hotstart.kernels.tile_tables import read_cached, shipped

    target = current_target()
    counts = len(shipped(target).entries), len(read_cached(target).entries)
    if any(counts):
        return Finding("tiles", "ok", f"{counts[0]} measured entries shipped for this GPU, {counts[1]} measured here")
    return Finding("tiles", "note", "nobody measured this GPU yet", "the first start takes up to 60 s more to do so")


def _triton() -> Iterator[Finding]:
    found = _version("triton")
    needed = sys.platform == "linux"
    if found is None:
        yield Finding("triton", "missing" if needed else "note", "not installed", "pip install 'triton>=3.6'")
    elif _numbers(found) < OLDEST_TRITON:
        yield Finding("triton", "missing", f"{found}, older than 3.6", "pip install 'triton>=3.6'")
    else:
        yield Finding("triton", "ok", found)


def _compiler() -> Iterator[Finding]:
    found = next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if (path := shutil.which(name or ""))), ""
    )
    if found:
        yield Finding("c compiler", "ok", found)
    else:
        remedy = "apt install gcc   (Triton compiles a small launcher at a GPU's first start)"
        yield Finding("c compiler", "missing" if _has_gpu() else "note", "none", remedy)


def _optional() -> Iterator[Finding]:
    for package, use in OPTIONAL.items():
        found = _version(package)
        yield Finding(package, "ok" if found else "note", found or "not installed, not needed", "" if found else use)


def _caches() -> Iterator[Finding]:
    from huggingface_hub import constants

    from hotstart.kernels.tile_tables import cache_folder

    triton = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    for name, folder, variable in (
        ("tile cache", cache_folder(), "HOTSTART_CACHE"),
        ("kernel cache", triton, "TRITON_CACHE_DIR"),
        ("hub cache", Path(constants.HF_HUB_CACHE), "HF_HOME"),
    ):
        there = _nearest(folder)
        free = shutil.disk_usage(there).free
        text = f"{folder}, {as_size(free)} free"
        if not _is_writable(there):
            yield Finding(name, "note", f"{text}, not writable", f"set {variable} to a folder that is")
        elif name == "hub cache" and free < FREE_DISK_BYTES:
            yield Finding(name, "note", text, f"a checkpoint may not fit; set {variable} to a folder with more room")
        else:
            yield Finding(name, "ok", text)
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: only what is cached is found", "unset it to download")


def _memory() -> Iterator[Finding]:
    if _imported("torch") is None:
        return
    from hotstart.engine.device import machine_memory

    total, available = machine_memory()
    yield Finding("memory", "ok", f"{as_size(available)} of {as_size(total)} free")


def _files() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        yield Finding("open files", "note", f"{soft} at most, each client takes one", "ulimit -n 65536")


def _choice() -> Iterator[Finding]:
    """What a start without flags would use."""
    if _imported("torch") is not None and _has_gpu():
        yield Finding("would use", "ok", "the GPU, with Triton kernels, and all of its memory but a reserve")
    elif _imported("torch") is not None:
        yield Finding("would use", "ok", "the CPU, with PyTorch's operators, and half of the memory")


def _has_gpu() -> bool:
    torch = _imported("torch")
    return torch is not None and bool(torch.cuda.is_available())


def _imported(name: str) -> Any:
    return sys.modules.get(name)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


def _driver() -> str | None:
    """Its version; None where there is no NVIDIA driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def _nearest(folder: Path) -> Path:
    """Itself, or what it would be made in."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
