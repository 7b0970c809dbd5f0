"""Fused: one parameter of ours that several checkpoint tensors fill.

A layer that fuses says so in `fused()`, beside the place where the rows are used again.  Every other parameter is
filled by the tensor of its own name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["Fused", "Piece", "by_rows"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A checkpoint tensor and the views of our parameter that it fills.

    The tensor is read as [groups, rows, ...]; each part takes the next rows of every group.  One group and one part is
    a plain copy; several groups undo an interleaving by heads.
    """

    name: str  # in the checkpoint, relative to the layer
    parts: tuple[Tensor, ...]  # each [groups, rows of this part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the checkpoint tensor."""
        first = self.parts[0]
        return (first.shape[0] * sum(part.shape[1] for part in self.parts), *first.shape[2:])

    @property
    def plain(self) -> Tensor | None:
        """Where the stored bytes stand as they are in the checkpoint; None where they are spread."""
        first = self.parts[0]
        return first if len(self.parts) == 1 and first.shape[0] == 1 and first.is_contiguous() else None

    def fill(self, stored: Tensor) -> None:
        first = self.parts[0]
        rows = [part.shape[1] for part in self.parts]
        grouped = stored.view(first.shape[0], sum(rows), *first.shape[2:])
        for part, source in zip(self.parts, torch.split(grouped, rows, dim=1), strict=True):
            part.copy_(source)


@dataclass(frozen=True, slots=True)
class Fused:
    """A parameter, and the spellings in which checkpoints hold it: all pieces of exactly one spelling fill it."""

    parameter: nn.Parameter
    spellings: tuple[Sequence[Piece], ...]
    padding: tuple[Tensor, ...] = field(default=())  # views that no piece fills: zero


def by_rows(weight: Tensor, rows: dict[str, int]) -> list[Piece]:
    """Pieces that lie one below the other from the first row on."""
    parts = torch.split(weight[: sum(rows.values())], list(rows.values()))
    return [Piece(name, (part.unsqueeze(0),)) for name, part in zip(rows, parts, strict=True)]
