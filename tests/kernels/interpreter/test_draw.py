"""The kernel that samples, against the torch form: the same draws, but for those at a boundary."""

import pytest
import torch
from sampling_cases import HISTORY, disagreements, make_rows

from hotstart.kernels import draw


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(draw, "_BLOCK", 64)
    monkeypatch.setattr(draw, "_GUESS", 8)


SETTINGS = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "hot": {"temperature": 3.0},
    "cold": {"temperature": 0.05},
    "top-k": {"top_k": 5},
    "top-k of one": {"top_k": 1},
    "top-k of many": {"top_k": 50},
    "top-k of all": {"top_k": 1000},
    "top-p": {"top_p": 0.5},
    "top-p of nearly all": {"top_p": 0.999, "temperature": 9.0},
    "tiny top-p": {"top_p": 1e-6},
    "both": {"top_k": 20, "top_p": 0.9},
    "banned": {"top_k": 3, "banned": (7, 8, 9)},
    "min-p": {"min_p": 0.2},
    "min-p and top-p": {"min_p": 0.05, "top_p": 0.8},
    "all three": {"min_p": 0.02, "top_k": 30, "top_p": 0.7, "temperature": 1.5},
}


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_draws_are_those_of_the_torch_form(kind):
    wishes = [setting | {"seed": 7 * i - 50, "position": i} for i, setting in enumerate(SETTINGS.values())]
    logits = torch.randn(len(wishes), 150, generator=torch.Generator().manual_seed(0)).half() * 2
    if kind == "ties":
        logits = logits.round() * 0.5
    tokens = draw.sample(logits, make_rows(wishes), HISTORY)
    assert disagreements(logits, make_rows(wishes), tokens) == []
    some = [0, 5, 9, 12]  # no row knows its neighbours
    assert torch.equal(draw.sample(logits[some], make_rows([wishes[i] for i in some]), HISTORY), tokens[some])
