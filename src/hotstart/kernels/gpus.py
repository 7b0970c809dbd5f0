"""GPUs by name: what compilers, limits and memory plans depend on, for those that are not here."""

import re
from dataclasses import dataclass

from hotstart.errors import ConfigError

__all__ = ["GPUS", "Gpu", "parse_gpu"]

KIB = 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    arch: int  # 90 for sm_90
    shared_bytes: int  # the most that one program may ask for
    multiprocessors: int = 128
    product: str = "stub"  # as its driver calls it; tables of tiles go by this name
    memory_bytes: tuple[int, int] | None = None  # what the driver offers, at least and at most
    for_displays: bool = False  # a screen is likely to hang on it


# The opt-in limit of a block: CUDA C programming guide, table of compute capabilities.
_SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# Product, architecture, multiprocessors, MiB that the driver offers.  As PyTorch's messages give them, which differ a
# little by driver and by error correction; the H200's was read on one.
_PRODUCTS = {
    "rtx5090": ("NVIDIA GeForce RTX 5090", 120, 170, (32082, 32154)),
    "rtx4090": ("NVIDIA GeForce RTX 4090", 89, 128, (24064, 24269)),
    "rtx3090": ("NVIDIA GeForce RTX 3090", 86, 82, (24104, 24269)),
    "a100": ("NVIDIA A100-SXM4-80GB", 80, 108, (80998, 81255)),
    "l40s": ("NVIDIA L40S", 89, 142, (45373, 45620)),
    "h100": ("NVIDIA H100 80GB HBM3", 90, 132, (80998, 81255)),
    "h200": ("NVIDIA H200", 90, 132, (143155.9375, 143155.9375)),
    "b200": ("NVIDIA B200", 100, 148, (182579, 182682)),
}
GPUS = {
    name: Gpu(
        name,
        arch,
        _SHARED_KIB[arch] * KIB,
        count,
        product,
        (int(least * 2**20), int(most * 2**20)),
        "GeForce" in product,
    )
    for name, (product, arch, count, (least, most)) in _PRODUCTS.items()
}


def _plain(name: str) -> str:
    """ "NVIDIA GeForce RTX 5090" -> "rtx5090"."""
    return re.sub(r"nvidia|geforce|[ _-]", "", name.lower())


def parse_gpu(text: str) -> Gpu:
    """`rtx5090`, or as its driver calls it; `sm_120`, or `sm_120:99KiB` for a part with another limit."""
    for name, gpu in GPUS.items():
        if _plain(text) in (name, _plain(gpu.product)):
            return gpu
    match = re.fullmatch(r"sm_(\d+)(?::(\d+)KiB)?", text)
    if not match or int(match[1]) not in _SHARED_KIB:
        names = ", ".join(GPUS)
        arches = ", ".join(f"sm_{arch}" for arch in _SHARED_KIB)
        raise ConfigError(f"unknown GPU {text!r}; name one of {names}, or {arches}, or a limit as in sm_120:99KiB")
    arch = int(match[1])
    return Gpu(text, arch, int(match[2] or _SHARED_KIB[arch]) * KIB)
