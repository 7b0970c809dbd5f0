"""How the products of experts are cut: for bandwidth where an expert has few rows, for arithmetic where it has many.

The sum of a product's row runs in one order in both, so the choice, which follows from the number of tokens, shows in
no bit of a result.
"""

import functools
from dataclasses import dataclass

import torch
from triton.runtime import driver

from hotstart.kernels.target import current_target

__all__ = ["Tiles", "all_tiles", "tiles_for"]

MANY_ROWS = 32  # of an expert, on average


@dataclass(frozen=True, slots=True)
class Tiles:
    rows: int  # pairs (token, expert)
    columns: int  # of gate, and as many of up
    down_columns: int
    depth: int
    warps: int
    stages: int


def tiles_for(num_pairs: int, num_experts: int, dtype: torch.dtype) -> Tiles:
    few, many = all_tiles(dtype)
    return many if num_pairs >= MANY_ROWS * num_experts else few


def all_tiles(dtype: torch.dtype) -> tuple[Tiles, Tiles]:
    """For few rows and for many, on the active GPU."""
    return _tiles_on(driver._active, dtype)


@functools.cache
def _tiles_on(active: object, dtype: torch.dtype) -> tuple[Tiles, Tiles]:
    if dtype == torch.float32:
        small = Tiles(rows=16, columns=32, down_columns=32, depth=32, warps=4, stages=2)
        return small, small
    target = current_target()
    if 90 <= target.arch < 120 and target.shared_bytes >= 160 << 10:
        return (
            Tiles(rows=64, columns=32, down_columns=64, depth=128, warps=4, stages=3),
            Tiles(rows=128, columns=128, down_columns=256, depth=64, warps=8, stages=3),
        )
    return (
        Tiles(rows=16, columns=32, down_columns=64, depth=128, warps=4, stages=3),
        Tiles(rows=64, columns=64, down_columns=128, depth=64, warps=4, stages=3),
    )
