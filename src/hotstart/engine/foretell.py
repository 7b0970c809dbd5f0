"""foretell_peaks(): steps' peaks without running any, where the warm-up is left out on purpose."""

from collections.abc import Callable

import torch

from hotstart.config.model import ModelConfig
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.predict_step import GpuTraits, worst_step_bytes
from hotstart.engine.sizes import GpuSizes
from hotstart.engine.sizing import Peaks
from hotstart.kernels.target import current_target

__all__ = ["foretell_peaks"]


def foretell_peaks(
    config: ModelConfig,
    dtype: torch.dtype,
    inputs: InputBuilder,
    sizes: tuple[int, ...],
    enough: Callable[[Peaks, int], bool],
) -> Peaks:
    """Of our kernels, largest size first, until one leaves enough memory."""
    target, name = current_target(), str(dtype).removeprefix("torch.")
    traits = GpuTraits.of(target.arch, target.shared_bytes)
    peaks: Peaks = {}
    for size in sizes:
        peaks[size] = worst_step_bytes(config, name, inputs.limits, traits, GpuSizes(), size)
        if enough(peaks, size):
            break
    return peaks
