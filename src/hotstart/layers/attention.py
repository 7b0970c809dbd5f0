"""Gated attention: queries carry a gate that scales the attention's output, element by element."""

import torch
from torch import Tensor

from hotstart.cache.tensors import CacheTensors
from hotstart.config.model import ModelConfig
from hotstart.kernels.ops import AttentionDims, Ops
from hotstart.kernels.step import StepInputs
from hotstart.layers.fused import Fused, by_rows
from hotstart.layers.linear import Layer, Linear, meta_parameter
from hotstart.layers.norm import RMSNorm
from hotstart.layers.rotary import RotaryTable

__all__ = ["GatedAttention", "attention_dims"]


def attention_dims(config: ModelConfig) -> AttentionDims:
    return AttentionDims(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rotary_dim=config.rope.rotary_dim,
        eps=config.rms_norm_eps,
    )


class GatedAttention(Layer):
    def __init__(self, config: ModelConfig, index: int, rotary: RotaryTable, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.index = index
        self.ops = ops
        self.dims = dims = attention_dims(config)
        width, kv_width = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
        # By head its query rows, then its gate rows; then all keys, then all values.
        self.widths = {"q_proj.weight": 2 * width, "k_proj.weight": kv_width, "v_proj.weight": kv_width}
        self.qkv_proj = Linear(config.hidden_size, sum(self.widths.values()), ops, dtype)
        self.o_proj = Linear(width, config.hidden_size, ops, dtype)
        self.q_norm_weight = meta_parameter(dims.head_dim, dtype=dtype)
        self.k_norm_weight = meta_parameter(dims.head_dim, dtype=dtype)
        self.rotary = rotary

    def fused(self) -> list[Fused]:
        return [
            Fused(self.qkv_proj.weight, (by_rows(self.qkv_proj.weight, self.widths),)),
            Fused(self.q_norm_weight, (by_rows(self.q_norm_weight, {"q_norm.weight": self.dims.head_dim}),)),
            Fused(self.k_norm_weight, (by_rows(self.k_norm_weight, {"k_norm.weight": self.dims.head_dim}),)),
        ]

    def forward(self, residual: Tensor, norm: RMSNorm, step: StepInputs, cache: CacheTensors) -> Tensor:
        """residual [T, D], in place."""
        keys, values = cache.kv(self.index)
        q, packed = self._prepare(residual, norm, step, keys, values)
        return self.o_proj.add_to(residual, self.ops.paged_attention(q, packed, keys, values, step, self.dims))

    def ends(self, residual: Tensor, norm: RMSNorm, step: StepInputs, cache: CacheTensors) -> Tensor:
        """Keys and values of all tokens; the residual of the spans' last ones, [T, D] -> [E, D]."""
        keys, values = cache.kv(self.index)
        rows = step.ends.rows
        q, packed = (part.index_select(0, rows) for part in self._prepare(residual, norm, step, keys, values))
        out = self.ops.paged_attention(q, packed, keys, values, step.ends, self.dims)
        return self.o_proj.add_to(residual.index_select(0, rows), out)

    def _prepare(
        self, residual: Tensor, norm: RMSNorm, step: StepInputs, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries, and the projection that holds their gates."""
        packed = self.qkv_proj.of_norm(norm, residual)
        norms = self.q_norm_weight, self.k_norm_weight
        q = self.ops.attention_prepare(packed, *norms, self.rotary.table, keys, values, step, self.dims)
        return q, packed
