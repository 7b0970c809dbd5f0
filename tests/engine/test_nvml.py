"""The driver's management library, as far as it can be told without one."""

import ctypes
from types import SimpleNamespace

from hotstart.engine.nvml import Nvml, ProcessInfo

MIB = 1 << 20


def library(processes, display=0, answer=0):
    """What the C library does, with these processes and bytes."""

    def by_uuid(name, device):
        device._obj.value = 7
        return 0 if name == b"GPU-abc" else 6

    def running(device, count, infos):
        room, count._obj.value = count._obj.value, len(processes)
        if room < len(processes):
            return 7
        for info, (pid, used) in zip(infos, processes, strict=False):
            info.pid, info.used_bytes = pid, used
        return answer

    def active(device, found):
        found._obj.value = display
        return answer

    return SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetComputeRunningProcesses_v3=running,
        nvmlDeviceGetDisplayActive=active,
    )


def test_processes_and_the_screen_are_told():
    many = [(pid, pid * MIB) for pid in range(1, 9)]
    gpu = Nvml("abc", library([*many, (9, 2**64 - 1)], display=1))
    assert gpu.processes() == [*many, (9, None)] and gpu.has_display()
    idle = Nvml("abc", library([]))
    assert idle.processes() == [] and not idle.has_display()
    assert ctypes.sizeof(ProcessInfo) == 24  # nvmlProcessInfo_v2_t


def test_where_nothing_can_be_told_nothing_is():
    for gpu in (Nvml("other", library([(1, MIB)], 1)), Nvml("abc", library([(1, MIB)], 1, answer=3)), Nvml("abc")):
        assert gpu.processes() == [] and not gpu.has_display()
