"""RotaryTable: cosines and sines of every position, computed once in float32 and shared by all layers."""

import torch
from torch import Tensor, nn

from hotstart.config.rope import Rope
from hotstart.kernels.rotary import Yarn, rope_table

__all__ = ["RotaryTable"]


class RotaryTable(nn.Module):
    table: Tensor  # [positions, rotary_dim] float32: cos | sin, half of the width each

    def __init__(self, rope: Rope, num_positions: int) -> None:
        super().__init__()
        self.rope = rope
        empty = torch.empty(num_positions, rope.rotary_dim, dtype=torch.float32, device="meta")
        self.register_buffer("table", empty, persistent=False)

    def fill(self) -> None:
        """Compute the table into its memory."""
        rope, yarn = self.rope, None
        if rope.yarn is not None:
            yarn = Yarn(
                factor=rope.yarn.factor,
                original_max_positions=rope.yarn.original_max_position_embeddings,
                beta_fast=rope.yarn.beta_fast,
                beta_slow=rope.yarn.beta_slow,
                attention_factor=rope.yarn.attention_factor,
                truncate=rope.yarn.truncate,
            )
        self.table.copy_(rope_table(self.table.shape[0], rope.rotary_dim, rope.theta, yarn, self.table.device))
