"""SparseMoE: the best few of many experts for each token, and one expert that every token shares."""

import torch
from torch import Tensor

from hotstart.config.model import ModelConfig
from hotstart.kernels.ops import MoeDims, Ops, Step
from hotstart.layers.fused import Fused, Piece
from hotstart.layers.linear import Layer, Linear, meta_parameter
from hotstart.layers.mlp import MLP

__all__ = ["SparseMoE", "moe_dims"]


def moe_dims(config: ModelConfig) -> MoeDims:
    return MoeDims(
        num_experts=config.num_experts,
        top_k=config.num_experts_per_tok,
        width=config.moe_intermediate_size,
        renormalise=config.norm_topk_prob,
    )


class SparseMoE(Layer):
    def __init__(self, config: ModelConfig, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        D, E, width = config.hidden_size, config.num_experts, config.moe_intermediate_size
        self.ops = ops
        self.dims = moe_dims(config)
        self.gate = Linear(D, E, ops, dtype)  # the router
        self.gate_up_proj = meta_parameter(E, 2 * width, D, dtype=dtype)
        self.down_proj = meta_parameter(E, D, width, dtype=dtype)
        self.shared_expert = MLP(D, config.shared_expert_intermediate_size, ops, dtype)
        self.shared_expert_gate = Linear(D, 1, ops, dtype)

    def fused(self) -> list[Fused]:
        """Stacked over the experts (then without `.weight`), or one tensor for each expert."""
        width = self.down_proj.shape[2]
        gates = by_expert("gate_proj", self.gate_up_proj[:, :width])
        ups = by_expert("up_proj", self.gate_up_proj[:, width:])
        return [
            Fused(self.gate_up_proj, ([stacked("gate_up_proj", self.gate_up_proj)], [*gates, *ups])),
            Fused(self.down_proj, ([stacked("down_proj", self.down_proj)], by_expert("down_proj", self.down_proj))),
        ]

    def forward(self, x: Tensor, step: Step) -> Tensor:  # [T, D] -> [T, D]
        y = self.ops.moe(x, self.gate(x), self.gate_up_proj, self.down_proj, self.dims, step)
        return y.addcmul_(torch.sigmoid(self.shared_expert_gate(x)), self.shared_expert(x, step))


def stacked(name: str, weight: Tensor) -> Piece:
    return Piece(f"experts.{name}", (weight.unsqueeze(0),))


def by_expert(name: str, weight: Tensor) -> list[Piece]:
    return [Piece(f"experts.{e}.{name}.weight", (one.unsqueeze(0),)) for e, one in enumerate(weight)]
