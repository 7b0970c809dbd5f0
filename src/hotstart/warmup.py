"""Watch, warm and seal any PyTorch program that uses Triton: see docs/AUDIT.md.

with hotstart.warmup.watch() as watch:
    ...                     # load, warm up
    watch.seal()            # ready
    ...                     # serve
for event in watch.events:
    print(event)            # what happened after "ready", and what was different
"""

from hotstart.kernels.launch import (
    Kernel,
    Launcher,
    LaunchKey,
    LaunchSpace,
    WarmupReport,
    kernel,
    recording,
    seal,
    warm_up,
)
from hotstart.kernels.watch import LateEvent, MemoryWatch, Watch

__all__ = [
    "Kernel",
    "LateEvent",
    "LaunchKey",
    "LaunchSpace",
    "Launcher",
    "MemoryWatch",
    "WarmupReport",
    "Watch",
    "kernel",
    "recording",
    "seal",
    "warm_up",
    "watch",
]

watch = Watch
