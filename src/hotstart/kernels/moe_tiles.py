"""How the products of experts are cut: for bandwidth where an expert has few rows, for arithmetic where it has many.

The sum of a product's row runs in one order in both, so the choice, which follows from the number of tokens, shows in
no bit of a result.
"""

import functools
from dataclasses import dataclass

import torch

from hotstart.kernels.ops import MoeDims
from hotstart.kernels.space import LaunchSpace
from hotstart.kernels.target import Target, current_target

__all__ = ["Cut", "Tiles", "all_tiles", "tiles_for", "warmup"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Of one product: columns of weights (of gate, and as many of up), and how far along a sum."""

    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Tiles:
    up_to: int  # rows of an expert, on average
    rows: int  # pairs (token, expert)
    swapped: bool
    gate_up: Cut
    down: Cut


def tiles_for(num_tokens: int, dims: MoeDims, dtype: torch.dtype) -> Tiles:
    rows = num_tokens * dims.top_k / dims.num_experts
    return next(tiles for tiles in all_tiles(dtype) if rows <= tiles.up_to)


def all_tiles(dtype: torch.dtype) -> tuple[Tiles, ...]:
    """From few rows to many, on the active GPU."""
    return _tiles_on(current_target(), dtype)


ALL = 1 << 62


@functools.cache
def _tiles_on(target: Target, dtype: torch.dtype) -> tuple[Tiles, ...]:
    if dtype == torch.float32:
        small = Cut(columns=32, depth=32, warps=4, stages=2)
        return (Tiles(ALL, 16, False, small, small),)
    if 90 <= target.arch < 120 and target.shared_bytes >= 160 << 10:
        return (
            Tiles(16, 16, True, Cut(32, 128, 4, 3), Cut(64, 128, 4, 3)),
            Tiles(48, 64, False, Cut(64, 64, 4, 4), Cut(128, 64, 4, 4)),
            Tiles(ALL, 128, False, Cut(128, 64, 8, 4), Cut(256, 64, 8, 4)),
        )
    return (
        Tiles(16, 16, False, Cut(32, 128, 4, 3), Cut(64, 128, 4, 3)),
        Tiles(ALL, 64, False, Cut(64, 64, 4, 3), Cut(128, 64, 4, 3)),
    )


def warmup(space: LaunchSpace) -> None:
    """Of every kernel that is cut so: the op that launches them all, which imports them."""
    from hotstart.kernels import moe

    moe.warmup(space)
