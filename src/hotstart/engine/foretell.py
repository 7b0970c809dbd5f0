"""What steps take before any has run: for wishes that cannot be met, and where the warm-up is left out on purpose."""

from collections.abc import Callable

import torch

from hotstart.config.model import ModelConfig
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.limits import StepLimits
from hotstart.engine.predict_step import GpuTraits, worst_step_bytes
from hotstart.engine.sizes import GpuSizes
from hotstart.engine.sizing import Peaks
from hotstart.kernels.target import current_target

__all__ = ["foretell_peaks", "least_peak"]

CERTAIN = 0.9  # of what is foretold, which was never off by as much as this


def foretell_peaks(
    config: ModelConfig,
    dtype: torch.dtype,
    inputs: InputBuilder,
    sizes: tuple[int, ...],
    enough: Callable[[Peaks, int], bool],
) -> Peaks:
    """Of our kernels, largest size first, until one leaves enough memory."""
    peaks: Peaks = {}
    for size in sizes:
        peaks[size] = _foretold(config, dtype, inputs.limits, size)
        if enough(peaks, size):
            break
    return peaks


def least_peak(config: ModelConfig, dtype: torch.dtype, limits: StepLimits, size: int) -> int:
    """What a step of so many tokens takes at the least, with our kernels."""
    return int(_foretold(config, dtype, limits, size) * CERTAIN)


def _foretold(config: ModelConfig, dtype: torch.dtype, limits: StepLimits, size: int) -> int:
    target, name = current_target(), str(dtype).removeprefix("torch.")
    traits = GpuTraits.of(target.arch, target.shared_bytes)
    return worst_step_bytes(config, name, limits, traits, GpuSizes(), size)
