"""Ops: the table of functions that layers call, one table for each backend.

Which table a model gets comes from configuration, never from where a tensor lives: the same layer code
runs on the CPU, on a GPU, and on meta tensors under either table.  Every function takes plain tensors, and of a step
what it needs (step.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "EXTERNAL",
    "AttentionDims",
    "GdnDims",
    "GdnWeights",
    "MoeDims",
    "Ops",
    "Prefill",
]

Prefill = Literal["torch", "triton", "fla", "flashinfer"]  # whose chunked delta rule runs
EXTERNAL: frozenset[Prefill] = frozenset({"fla", "flashinfer"})


@dataclass(frozen=True)
class GdnDims:
    """Sizes of one Gated DeltaNet mixer.  A row of the packed projection is q | k | v | z | b | a | padding."""

    num_key_heads: int  # H
    num_value_heads: int  # HV, a multiple of H; value head j reads key head j // (HV / H)
    key_dim: int  # K
    value_dim: int  # V
    conv_width: int
    eps: float  # of the gated norm

    @property
    def conv_channels(self) -> int:  # C = q | k | v
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim

    @property
    def z_offset(self) -> int:
        return self.conv_channels

    @property
    def b_offset(self) -> int:
        return self.z_offset + self.num_value_heads * self.value_dim

    @property
    def a_offset(self) -> int:
        return self.b_offset + self.num_value_heads

    @property
    def packed_width(self) -> int:
        """Row length of the packed projection, padded so that every row is 16-byte aligned in every dtype."""
        return -(-(self.a_offset + self.num_value_heads) // 64) * 64

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """Widths within a row: q | k | v, then z, b | a and the padding."""
        ends = (0, self.z_offset, self.b_offset, self.a_offset + self.num_value_heads, self.packed_width)
        return tuple(end - start for start, end in pairwise(ends))


@dataclass(frozen=True)
class GdnWeights:
    """Of one mixer, and what the torch forms make of them when they first run."""

    conv: Tensor  # [C, conv_width], model dtype
    A_log: Tensor  # [HV] float32
    dt_bias: Tensor  # [HV] float32
    norm: Tensor  # [V] float32, plain (not 1 + w)

    @cached_property
    def taps(self) -> Tensor:
        """The convolution's weights [conv_width, C], float32."""
        return self.conv.T.float().contiguous()

    @cached_property
    def gates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sign, bias and rate of b | a, [2 HV] each: rate * softplus(sign * x + bias) is log(beta), and g."""
        one = torch.ones_like(self.A_log)
        parts = (-one, one), (torch.zeros_like(one), self.dt_bias), (-one, -self.A_log.exp())
        sign, bias, rate = (torch.cat(pair) for pair in parts)
        return sign, bias, rate

    @cached_property
    def norm_of_length(self) -> Tensor:
        """What a row of values is multiplied by once it is divided by its length, [V]."""
        return torch.mul(self.norm, self.norm.shape[0] ** 0.5)


@dataclass(frozen=True, slots=True)
class AttentionDims:
    """Sizes of one gated attention layer.  A row of the packed projection is (q, gate) by head | k | v."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    eps: float

    @property
    def packed_width(self) -> int:
        return 2 * (self.num_heads + self.num_kv_heads) * self.head_dim


@dataclass(frozen=True, slots=True)
class MoeDims:
    """Sizes of one mixture of experts."""

    num_experts: int  # E
    top_k: int
    width: int  # I, of each expert
    renormalise: bool  # whether the weights of a token's experts sum to 1
    shares: bool = False  # whether one more expert of this width, stacked behind them, sees every token

    @property
    def experts_per_token(self) -> int:
        return self.top_k + self.shares

    @property
    def stacked_experts(self) -> int:
        return self.num_experts + self.shares

    @property
    def logit_width(self) -> int:
        """Of a row of logits: the router's, the gate of the shared expert, and padding to 16 bytes in every dtype."""
        return -(-(self.num_experts + 1) // 8) * 8


@dataclass(frozen=True, slots=True)
class Ops:
    """Shapes: T tokens of the rung, D hidden, I intermediate.  Zero-centred norms multiply by 1 + weight."""

    name: str
    # (x [T, K], weight [N, K]) -> x @ weight^T [T, N]
    linear: Callable[[Tensor, Tensor], Tensor]
    # (x [T, D], norm [D], eps, weight [N, D]) -> rms_norm(x) @ weight^T [T, N]
    norm_linear: Callable[[Tensor, Tensor, float, Tensor], Tensor]
    # (x [T, D], norm [D], eps, weight [2 I, D]: gate | up) -> silu(gate) * up of the norm's products [T, I]
    norm_swiglu: Callable[[Tensor, Tensor, float, Tensor], Tensor]
    # (residual [T, D], x [T, K], weight [D, K]) -> the residual, to which x @ weight^T is added in place
    add_linear: Callable[[Tensor, Tensor, Tensor], Tensor]
    # (x [T, D], norm [D], eps) -> [T, D]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    # (x [T, 2 I]: gate | up) -> silu(gate) * up [T, I]
    silu_mul: Callable[[Tensor], Tensor]
    # (packed [T, *], q_norm [D], k_norm [D], rope [positions, rotary_dim]: cos | sin float32, keys, values, step, dims)
    # -> queries [T, H, D]; writes normed and rotated keys, and values, at step.kv_index
    attention_prepare: Callable[..., Tensor]
    # (queries [T, H, D], packed [T, *], keys, values, step, dims) -> attention * sigmoid(the packed gates) [T, H * D]
    paged_attention: Callable[..., Tensor]
    # (packed [T, packed_width], weights, conv, state, decode: DecodeInputs, dims, out [T, HV * V]): fills rows [0, N)
    gdn_decode: Callable[..., None]
    # (packed, weights, conv, state, prefill: PrefillInputs, dims, out): fills the rows of the prefill spans
    gdn_prefill: Callable[..., None]
    # (residual [T, D], norm [D], eps, router [logit_width, D]) -> rms_norm(residual) [T, D], its logits
    norm_router: Callable[[Tensor, Tensor, float, Tensor], tuple[Tensor, Tensor]]
    # (residual [T, D], x [T, D], logits, gate_up [experts, 2 I, D], down [experts, D, I], dims, step)
    # -> the residual, to which the experts of x are added in place
    moe: Callable[..., Tensor]
    # (logits [R, vocab], rows: SamplingRows, history [slots, positions]) -> token ids [R] int64
    sample: Callable[..., Tensor]
    # (history [slots, positions] int32, token_ids [T], spans: Records): writes the spans' tokens into the history
    record: Callable[..., None]
