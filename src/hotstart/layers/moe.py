"""SparseMoE: the best few of many experts for each token, and one expert that every token shares."""

import torch
from torch import Tensor

from hotstart.config.model import ModelConfig
from hotstart.kernels.ops import MoeDims, Ops
from hotstart.kernels.step import Step
from hotstart.layers.fused import Fused, Piece, by_rows
from hotstart.layers.linear import Layer, Linear, meta_parameter
from hotstart.layers.mlp import MLP
from hotstart.layers.norm import RMSNorm

__all__ = ["SparseMoE", "moe_dims"]


def moe_dims(config: ModelConfig) -> MoeDims:
    return MoeDims(
        num_experts=config.num_experts,
        top_k=config.num_experts_per_tok,
        width=config.moe_intermediate_size,
        renormalise=config.norm_topk_prob,
        shares=config.shared_expert_intermediate_size == config.moe_intermediate_size,
    )


class SparseMoE(Layer):
    """A shared expert as wide as the others is stacked behind them; one of another width is a SwiGLU of its own."""

    def __init__(self, config: ModelConfig, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        D, width = config.hidden_size, config.moe_intermediate_size
        self.ops = ops
        self.dims = moe_dims(config)
        self.gate = Linear(D, self.dims.logit_width, ops, dtype)  # the router, the shared expert's gate, padding
        self.gate_up_proj = meta_parameter(self.dims.stacked_experts, 2 * width, D, dtype=dtype)
        self.down_proj = meta_parameter(self.dims.stacked_experts, D, width, dtype=dtype)
        if not self.dims.shares:
            self.shared_expert = MLP(D, config.shared_expert_intermediate_size, ops, dtype)

    def fused(self) -> list[Fused]:
        """Stacked over the experts (then without `.weight`), or one tensor for each expert."""
        E, width = self.dims.num_experts, self.dims.width
        gates, ups, downs = self.gate_up_proj[:, :width], self.gate_up_proj[:, width:], self.down_proj
        logits = by_rows(self.gate.weight, {"gate.weight": E, "shared_expert_gate.weight": 1})
        shared_in = [*shared("gate_proj", gates[E:]), *shared("up_proj", ups[E:])]
        by_name = [*by_expert("gate_proj", gates[:E]), *by_expert("up_proj", ups[:E])]
        shared_out = shared("down_proj", downs[E:])
        return [
            Fused(self.gate.weight, (logits,), padding=(self.gate.weight[E + 1 :],)),
            Fused(
                self.gate_up_proj,
                ([stacked("gate_up_proj", self.gate_up_proj[:E]), *shared_in], [*by_name, *shared_in]),
            ),
            Fused(
                self.down_proj,
                ([stacked("down_proj", downs[:E]), *shared_out], [*by_expert("down_proj", downs[:E]), *shared_out]),
            ),
        ]

    def forward(self, residual: Tensor, norm: RMSNorm, step: Step) -> Tensor:  # [T, D], in place
        x, logits = self.ops.norm_router(residual, norm.weight, norm.eps, self.gate.weight)
        residual = self.ops.moe(residual, x, logits, self.gate_up_proj, self.down_proj, self.dims, step)
        if self.dims.shares:
            return residual
        gate = logits.narrow(1, self.dims.num_experts, 1)
        return residual.addcmul_(torch.sigmoid(gate), self.shared_expert.of_normed(x))


def stacked(name: str, weight: Tensor) -> Piece:
    return Piece(f"experts.{name}", (weight.unsqueeze(0),))


def by_expert(name: str, weight: Tensor) -> list[Piece]:
    return [Piece(f"experts.{e}.{name}.weight", (one.unsqueeze(0),)) for e, one in enumerate(weight)]


def shared(name: str, weight: Tensor) -> list[Piece]:
    """Of the one shared expert, if it is among the stacked ones."""
    return [Piece(f"shared_expert.{name}.weight", (one.unsqueeze(0),)) for one in weight]
