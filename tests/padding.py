"""A CPU that serves as a GPU does: steps of answers are padded, two steps are under way."""

from hotstart.engine.device import CpuDevice
from hotstart.engine.sizes import GpuSizes

__all__ = ["PaddingDevice"]


class PaddingDevice(GpuSizes, CpuDevice):
    backend = "torch"
    flights = 2
    slab_rows = 4
    default_model_len = 256
