"""Gated DeltaNet: linear attention whose state is decayed, corrected and read at every token.

Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.  One layer for all families: Qwen3-Next stores its projections
interleaved by key head, which is undone while loading.
"""

import torch
from torch import Tensor

from hotstart.cache.tensors import CacheTensors
from hotstart.config.model import ModelConfig
from hotstart.kernels.ops import GdnDims, GdnWeights, Ops
from hotstart.kernels.step import StepInputs
from hotstart.layers.fused import Fused, Piece, by_rows
from hotstart.layers.linear import Layer, Linear, meta_parameter
from hotstart.layers.norm import RMSNorm

__all__ = ["GatedDeltaNet", "gdn_dims"]


def gdn_dims(config: ModelConfig) -> GdnDims:
    return GdnDims(
        num_key_heads=config.linear_num_key_heads,
        num_value_heads=config.linear_num_value_heads,
        key_dim=config.linear_key_head_dim,
        value_dim=config.linear_value_head_dim,
        conv_width=config.linear_conv_kernel_dim,
        eps=config.rms_norm_eps,
    )


class GatedDeltaNet(Layer):
    def __init__(self, config: ModelConfig, index: int, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.index = index
        self.ops = ops
        self.dims = dims = gdn_dims(config)
        self.value_width = dims.num_value_heads * dims.value_dim
        self.in_proj = Linear(config.hidden_size, dims.packed_width, ops, dtype)  # q | k | v | z | b | a | padding
        self.out_proj = Linear(self.value_width, config.hidden_size, ops, dtype)
        self.conv_weight = meta_parameter(dims.conv_channels, dims.conv_width, dtype=dtype)
        # Small, and read in float32: rounding them would be the only rounding left.
        self.A_log = meta_parameter(dims.num_value_heads, dtype=torch.float32)
        self.dt_bias = meta_parameter(dims.num_value_heads, dtype=torch.float32)
        self.norm_weight = meta_parameter(dims.value_dim, dtype=torch.float32)
        self._weights: GdnWeights | None = None

    def fused(self) -> list[Fused]:
        dims, weight = self.dims, self.in_proj.weight
        flat = by_rows(
            weight,
            {
                "in_proj_qkv.weight": dims.conv_channels,
                "in_proj_z.weight": self.value_width,
                "in_proj_b.weight": dims.num_value_heads,
                "in_proj_a.weight": dims.num_value_heads,
            },
        )
        conv = self.conv_weight.unsqueeze(1)  # stored [C, 1, W]
        return [
            Fused(weight, (flat, self._interleaved()), padding=(weight[dims.a_offset + dims.num_value_heads :],)),
            Fused(self.conv_weight, ([Piece("conv1d.weight", (conv.unsqueeze(0),))],)),
            Fused(self.norm_weight, (by_rows(self.norm_weight, {"norm.weight": dims.value_dim}),)),
        ]

    def _interleaved(self) -> list[Piece]:
        """For each key head its q, its k, the v and the z of its value heads; likewise b and a."""
        dims, weight = self.dims, self.in_proj.weight
        heads = dims.num_key_heads
        keys = heads * dims.key_dim

        def rows(first: int, count: int) -> Tensor:
            return weight[first : first + count].view(heads, count // heads, -1)

        q, k = rows(0, keys), rows(keys, keys)
        v, z = rows(2 * keys, self.value_width), rows(dims.z_offset, self.value_width)
        b, a = rows(dims.b_offset, dims.num_value_heads), rows(dims.a_offset, dims.num_value_heads)
        return [Piece("in_proj_qkvz.weight", (q, k, v, z)), Piece("in_proj_ba.weight", (b, a))]

    def forward(self, residual: Tensor, norm: RMSNorm, step: StepInputs, cache: CacheTensors) -> Tensor:
        """residual [T, D], in place."""
        return self.out_proj.add_to(residual, self._mix(residual, norm, step, cache))

    def ends(self, residual: Tensor, norm: RMSNorm, step: StepInputs, cache: CacheTensors) -> Tensor:
        """States after all tokens; the residual of the spans' last ones, [T, D] -> [E, D]."""
        rows = step.ends.rows
        out = self._mix(residual, norm, step, cache).index_select(0, rows)
        return self.out_proj.add_to(residual.index_select(0, rows), out)

    def _mix(self, residual: Tensor, norm: RMSNorm, step: StepInputs, cache: CacheTensors) -> Tensor:
        packed = self.in_proj.of_norm(norm, residual)
        weights, conv, state = self._gathered(), cache.conv(self.index), cache.state(self.index)
        out = packed.new_empty(packed.shape[0], self.value_width)  # rows of padding stay undefined
        self.ops.gdn_decode(packed, weights, conv, state, step.decode, self.dims, out)
        self.ops.gdn_prefill(packed, weights, conv, state, step.prefill, self.dims, out)
        return out

    def _gathered(self) -> GdnWeights:
        """One object as long as the parameters are the same: ops keep there what they make of them."""
        if self._weights is None or self._weights.conv is not self.conv_weight:
            self._weights = GdnWeights(self.conv_weight, self.A_log, self.dt_bias, self.norm_weight)
        return self._weights
