"""The kernels that edit logits, against the same formulas as the torch forms."""

import pytest
import torch
from test_edits import V, check, make_masks

from hotstart.kernels import edits


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(edits, "_BLOCK", 16)


def test_edits_are_their_formulas():
    for seed in range(6):
        check(edits.edit, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_masks_and_records_are_those_of_the_torch_forms(dtype):
    masks = make_masks({0: [0, 31, 32, V - 1], 2: [5]})
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = logits.clone()
    edits.mask(logits, masks)
    edits.mask_torch(other, masks)
    assert torch.equal(logits, other)
    spans = ((2, 3, 1, 34), (0, 39, 0, 1))
    table, tokens = torch.tensor(spans, dtype=torch.int32), torch.arange(1, 50, dtype=torch.int32)
    found = [torch.zeros(3, 40, dtype=torch.int32) for _ in range(2)]
    for history, record in zip(found, (edits.record, edits.record_torch), strict=True):
        record(history, tokens, edits.Records(table, spans))
    assert torch.equal(*found) and found[0].any()
