"""Watch, warm and seal any PyTorch program that uses Triton: see docs/AUDIT.md.

with hotstart.warmup.watch() as watch:
    ...                     # load, warm up
    watch.seal()            # ready
    ...                     # serve
for event in watch.events:
    print(event)            # what happened after "ready", and what was different
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hotstart.kernels.launch import Kernel, Launcher, LaunchKey, LaunchSpace, kernel, recording, seal
from hotstart.kernels.warm_up import WarmupReport, warm_up
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
    "ready",
    "recording",
    "seal",
    "warm_up",
    "watch",
    "when_ready",
]

watch = Watch
_listeners: list[Callable[[], None]] = []


def ready() -> None:
    """Say that what comes now is to be served without delay.  `hotstart audit` listens; otherwise it does nothing."""
    for listener in _listeners:
        listener()


@contextmanager
def when_ready(call: Callable[[], None]) -> Iterator[None]:
    """While this is entered, the program's `ready()` calls `call`."""
    _listeners.append(call)
    try:
        yield
    finally:
        _listeners.remove(call)
