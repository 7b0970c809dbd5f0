"""linear_torch is x @ weight^T, whichever library computes it and in however many slabs."""

import pytest
import torch

from hotstart.kernels import linear
from hotstart.kernels.backends import ops_for


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


def test_a_gpus_products_are_no_cpu_librarys(monkeypatch):
    def refuse(*_):
        raise AssertionError("a CPU's library was called")

    monkeypatch.setattr(linear, "SMALL_PRODUCT", 0)
    x, norm, weight, router = torch.randn(5, 96), torch.zeros(96), torch.randn(96, 96), torch.randn(8, 96)
    found = []
    for on_gpu in (False, True):
        ops = ops_for("torch", on_gpu=on_gpu)
        linears = ops.linear(x, weight), ops.norm_linear(x, norm, 1e-6, weight), ops.add_linear(x.clone(), x, weight)
        found.append([*linears, ops.norm_swiglu(x, norm, 1e-6, weight), *ops.norm_router(x, norm, 1e-6, router)])
        monkeypatch.setattr(linear, "_onednn", refuse)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
