"""Formulas that several kernels of the Gated DeltaNet mixer share."""

import triton
import triton.language as tl

__all__ = ["L2_EPS", "LOG2E", "bounded", "log_decay", "silu", "to_operand"]

LOG2E = tl.constexpr(1.4426950408889634)
L2_EPS = tl.constexpr(1e-6)
LARGEST = tl.constexpr(2.0**60)


@triton.jit
def silu(x):
    # exp2 and rsqrt are one instruction each on the GPU; a division is six.
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return x * (root * root)


@triton.jit
def bounded(x):
    """Of q, k and v: what is larger has a square that float32 does not hold.  silu bounds it from below."""
    return tl.minimum(x, LARGEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def log_decay(x, A_log):
    """g = -exp(A_log) softplus(x), where x is a + dt_bias."""
    softplus = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))
    return -tl.exp(A_log) * softplus


@triton.jit
def to_operand(x, dtype: tl.constexpr):
    """float16 ends at 65504: what is beyond it stays there, so that no infinity meets another."""
    if dtype == tl.float16:
        x = tl.clamp(x, -65504.0, 65504.0)
    return x.to(dtype)
