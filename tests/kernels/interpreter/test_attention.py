"""The attention kernels against attention written out in float64."""

import pytest
import torch
from attention_cases import assert_matches, make_case, run

from hotstart.kernels import attention_decode
from hotstart.kernels.attention import paged_attention
from hotstart.kernels.attention_prefill import Family, Tiles, _tiles
from hotstart.kernels.attention_prepare import attention_prepare
from hotstart.kernels.ops import AttentionDims

HEADS = {  # heads, key heads, head_dim, rotary_dim
    "six to a key head": AttentionDims(12, 2, 24, 8, 1e-6),
    "one to one, all rotated": AttentionDims(3, 3, 16, 16, 1e-6),
    "seventeen to one": AttentionDims(17, 1, 40, 10, 1e-6),
}
STEPS = {  # decodes, prefills: length and tokens before
    "one token": ([(1, 0)], []),
    "decodes": ([(1, 9), (1, 15), (1, 16), (1, 260)], []),
    "one prompt": ([], [(35, 0)]),
    "prompts": ([], [(1, 0), (16, 0), (0, 0), (17, 16), (15, 33)]),
    "mixed": ([(1, 40), (1, 3)], [(5, 0), (3, 30), (33, 5)]),
    "nothing": ([], []),
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """So that small steps have several blocks of queries, several tiles of keys and contexts of several parts."""
    monkeypatch.setattr(attention_decode, "PART_TOKENS", 16)
    monkeypatch.setattr(attention_decode, "MAX_PARTS", 4)
    monkeypatch.setattr(attention_decode, "_TILE_BYTES", 16 * 64)
    attention_decode._bound.cache_clear()
    for head_dim in (16, 24, 40):
        _tiles.use(Family(head_dim, "fp32"), Tiles(16, 16, 4, 1))
    yield
    attention_decode._bound.cache_clear()


CASES = [(name, "six to a key head") for name in STEPS] + [
    (n, h) for n in ("decodes", "mixed") for h in list(HEADS)[1:]
]


@pytest.mark.parametrize(("name", "heads"), CASES)
def test_step_matches_attention_written_out(name, heads):
    case = make_case(*STEPS[name], HEADS[heads])
    assert_matches(case, run(case, attention_prepare, paged_attention))


def test_slabs_of_sequences_change_nothing(monkeypatch):
    dims = HEADS["six to a key head"]
    case = make_case([(1, 200), (1, 9), (1, 130)], [], dims)
    together, *_ = run(case, attention_prepare, paged_attention)
    monkeypatch.setattr(attention_decode, "WORKSPACE_BYTES", 1)
    alone, *_ = run(case, attention_prepare, paged_attention)
    assert torch.equal(together, alone)
    assert_matches(case, run(case, attention_prepare, paged_attention))
