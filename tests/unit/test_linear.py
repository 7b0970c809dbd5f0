"""linear_torch is x @ weight^T, whichever library computes it and in however many slabs."""

import pytest
import torch

from hotstart.kernels import linear


@pytest.mark.parametrize("tokens", (1, 3, 64))
@pytest.mark.parametrize("slab", (1000, 16 << 20), ids=("slabs", "whole"))
def test_both_libraries_agree(tokens, slab, monkeypatch):
    monkeypatch.setattr(linear, "SLAB_WEIGHTS", slab)
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, 96), torch.randn(130, 96)
    expected = (x.double() @ weight.double().T).float()
    for small in (0, 1 << 62):
        monkeypatch.setattr(linear, "SMALL_PRODUCT", small)
        torch.testing.assert_close(linear.linear_torch(x, weight), expected, rtol=1e-5, atol=1e-4)


def test_shapes_hold_on_meta(monkeypatch):
    monkeypatch.setattr(linear, "SMALL_PRODUCT", 0)
    y = linear.linear_torch(torch.empty(5, 96, device="meta"), torch.empty(130, 96, device="meta"))
    assert (y.shape, y.device.type, y.dtype) == ((5, 130), "meta", torch.float32)
