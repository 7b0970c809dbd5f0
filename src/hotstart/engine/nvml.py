"""What the driver's management library tells of a GPU: whose its memory is, and whether a screen hangs on it.

The library comes with the driver, so nothing has to be installed for it.
"""

import ctypes
from typing import Any

__all__ = ["Nvml"]

_LIBRARY = "libnvidia-ml.so.1"
_TOO_SMALL = 7  # the answer where more processes are there than fit
_UNKNOWN = 2**64 - 1


class ProcessInfo(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Nvml:
    """One GPU.  Without the library, or of a GPU that it does not know, nothing is told."""

    def __init__(self, uuid: str, library: Any = None) -> None:
        self._library = library or _load()
        self._device = ctypes.c_void_p()
        if self._library is None:
            return
        name = f"GPU-{uuid}".encode()
        if self._library.nvmlInit_v2() or self._library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._device)):
            self._library = None

    def processes(self) -> list[tuple[int, int | None]]:
        """Process ids and the bytes that each holds, as far as the driver tells."""
        if self._library is None:
            return []
        room, answer = 0, _TOO_SMALL
        while answer == _TOO_SMALL:
            count, infos = ctypes.c_uint(room), (ProcessInfo * max(room, 1))()
            answer = self._library.nvmlDeviceGetComputeRunningProcesses_v3(self._device, ctypes.byref(count), infos)
            room = 2 * count.value + 4  # some may come in between
        found = infos[: count.value] if answer == 0 else ()
        return [(one.pid, None if one.used_bytes == _UNKNOWN else one.used_bytes) for one in found]

    def has_display(self) -> bool:
        active = ctypes.c_int(0)
        if self._library is None or self._library.nvmlDeviceGetDisplayActive(self._device, ctypes.byref(active)):
            return False
        return bool(active.value)


def _load() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
