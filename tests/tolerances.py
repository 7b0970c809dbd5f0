"""One table of tolerances, by dtype, for every test that compares numbers."""

import torch
from torch import Tensor

__all__ = ["FLOAT32_LOGITS", "HALF_MEDIAN_RATIO", "HALF_RATIO", "TOLERANCES", "assert_close", "relative_error"]

# (rtol, atol), for values of order one that took one rounding to the dtype after float32 arithmetic.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-2),
    torch.float16: (2e-3, 1e-3),
}

# Of a whole model against transformers.
FLOAT32_LOGITS = 2e-4  # largest difference of any logit, where logits spread by 2.5
HALF_RATIO = 1.3  # of rms errors against float32: ours over transformers' own in bfloat16 or float16
HALF_MEDIAN_RATIO = 1.1  # the same at the median position, where no expert flips


def assert_close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """Equal within the tolerance of `actual`'s dtype, loosened by `factor`; the shapes must agree."""
    rtol, atol = TOLERANCES[actual.dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=rtol * factor, atol=atol * factor, check_device=False
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of what is expected."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-30))
