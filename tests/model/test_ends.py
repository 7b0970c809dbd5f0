"""A last layer that computes the spans' ends alone leaves the same logits there, and the same caches."""

import pytest
import torch
from families import FAMILIES
from padding import PaddingDevice
from stepper import Stepper, load_model

from hotstart.engine.device import CpuDevice

PROMPTS = [[*range(5, 75)], [*range(100, 103)], [*range(40, 60)], [7, 8, 9, 10]]
STEPS = [[64, 2, 17, 0], [6, 1, 3, 3], [0, 0, 0, 1]]


@pytest.mark.parametrize("device", [CpuDevice, PaddingDevice])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_ends_are_what_all_rows_would_give(family, device, checkpoint):
    model = load_model(checkpoint(family.name), torch.float32)
    whole, ends = (Stepper(model, PROMPTS, device()) for _ in range(2))
    for number, lengths in enumerate(STEPS):
        expected = whole.step(lengths)
        found = ends.step(lengths, ends_alone=True)
        for of_all, of_end in zip(expected, found, strict=True):
            assert number == 2 or len(of_end) == min(1, len(of_all))
            torch.testing.assert_close(of_end, of_all[-1:], rtol=0, atol=2e-5)
    for name in ("kv_tensor", "conv_tensor", "state_tensor"):
        theirs, ours = getattr(whole.cache, name), getattr(ends.cache, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5, equal_nan=True)
