"""Which prefill backend is chosen, by GPU, package, shapes, flag and measurement; and the reason in words."""

import re
from dataclasses import asdict, replace

import pytest
import torch

from hotstart.errors import ConfigError
from hotstart.kernels.backends import ops_for
from hotstart.kernels.gdn_backends import RuleFamily, choose_prefill
from hotstart.kernels.ops import GdnDims
from hotstart.kernels.target import Target
from hotstart.kernels.tile_tables import Entry, Table, shipped

DIMS = GdnDims(num_key_heads=16, num_value_heads=32, key_dim=128, value_dim=128, conv_width=4, eps=1e-6)
H200 = Target("NVIDIA H200", 90, 227 * 1024, 132, "580.1")
RTX5090 = Target("NVIDIA GeForce RTX 5090", 120, 99 * 1024, 170, "580.1")
A100 = Target("NVIDIA A100-SXM4-80GB", 80, 163 * 1024, 108, "580.1")
ALL = {"fla": "0.6.0", "flashinfer": "0.6.13"}


def measured(gain, backend="flashinfer"):
    """A table in which the library is so many times as fast as ours."""
    entry = Entry(
        kernel="gdn_prefill_backend",
        family=asdict(RuleFamily(backend, 16, 32, 128, 128, "bfloat16")),
        tiles={"version": "0.6.13"},
        us={"1x8192": 100.0},
        default_us={"1x8192": 100.0 * gain},
        date="2026-01-01",
        command="make bench-kernels",
        versions={"triton": "3.6.0"},
        source="x",
    )
    return Table("NVIDIA H200", (entry,))


CASES = {
    "a CPU": ("auto", None, {}, 2.0, "torch", "PyTorch's ops"),
    "Hopper, installed and faster": ("auto", H200, ALL, 2.0, "flashinfer", "2.00 times as fast as ours on NVIDIA H200"),
    "Hopper, faster but not installed": ("auto", H200, {}, 2.0, "triton", r"pip install 'hotstart\[flashinfer\]'"),
    "Hopper, installed but slower": ("auto", H200, ALL, 0.7, "triton", "flashinfer is not faster on NVIDIA H200"),
    "within the noise": ("auto", H200, ALL, 1.01, "triton", "not faster"),
    "installed, never measured": ("auto", RTX5090, ALL, None, "triton", "flashinfer was not measured against it"),
    "nothing installed or measured": ("auto", A100, {}, None, "triton", "as far as known"),
    "ours on purpose": ("triton", H200, ALL, 2.0, "triton", "as asked for"),
    "fla on purpose": ("fla", A100, ALL, None, "fla", "as asked for"),
    "flashinfer on purpose": ("flashinfer", RTX5090, ALL, None, "flashinfer", "as asked for"),
    "PyTorch on a GPU, to compare": ("torch", H200, ALL, 2.0, "torch", "as asked for"),
}


@pytest.mark.parametrize(("wish", "target", "installed", "gain", "name", "reason"), CASES.values(), ids=CASES)
def test_the_choice_and_its_reason(wish, target, installed, gain, name, reason):
    table = measured(gain) if gain else Table("")
    choice = choose_prefill(wish, target, DIMS, torch.bfloat16, installed, table)
    assert choice.name == name
    assert choice.explicit == (wish != "auto")
    assert re.search(reason, choice.reason), choice.reason


REFUSED = {
    "on a CPU": ("fla", None, DIMS, torch.bfloat16, ALL, "needs a GPU"),
    "ours on a CPU": ("triton", None, DIMS, torch.bfloat16, ALL, "needs a GPU"),
    "fla is not here": ("fla", H200, DIMS, torch.bfloat16, {}, r"pip install 'hotstart\[fla\]'"),
    "flashinfer is not here": ("flashinfer", H200, DIMS, torch.bfloat16, {"fla": "0.6.0"}, r"hotstart\[flashinfer\]"),
    "no kernel for this GPU": ("flashinfer", A100, DIMS, torch.bfloat16, ALL, "no kernel for sm_80"),
    "in float32": (
        "flashinfer",
        H200,
        DIMS,
        torch.float32,
        ALL,
        "bfloat16 or float16, the model has K=128, V=128 in float32",
    ),
    "other heads": ("flashinfer", H200, replace(DIMS, value_dim=64), torch.bfloat16, ALL, "K=128, V=64"),
    "heads too wide": ("fla", H200, replace(DIMS, key_dim=512), torch.bfloat16, ALL, "K up to 256"),
}


@pytest.mark.parametrize(("wish", "target", "dims", "dtype", "installed", "words"), REFUSED.values(), ids=REFUSED)
def test_a_wish_that_cannot_be_met_is_refused_and_never_replaced(wish, target, dims, dtype, installed, words):
    with pytest.raises(ConfigError, match=f"--gdn-prefill-backend {wish} .*{words}"):
        choose_prefill(wish, target, dims, dtype, installed, Table(""))


def test_auto_takes_the_fastest_that_can_run_here():
    both = Table("", (*measured(1.5).entries, *measured(1.2, "fla").entries))
    choice = choose_prefill("auto", H200, DIMS, torch.bfloat16, ALL, both)
    assert (choice.name, choice.reason.partition(" ")[0]) == ("flashinfer", "1.50")
    only_fla = choose_prefill("auto", H200, DIMS, torch.bfloat16, {"fla": "0.6.0"}, both)
    assert only_fla.name == "fla"
    assert "flashinfer measured 1.50 times as fast, but needs flashinfer-python" in only_fla.reason


@pytest.mark.parametrize("value_heads", [16, 32, 48, 64, 128])
def test_on_an_h200_the_shipped_table_decides(value_heads):
    """Of every published family of heads."""
    dims = replace(DIMS, num_value_heads=value_heads)
    choice = choose_prefill("auto", H200, dims, torch.bfloat16, {"flashinfer": "0.6.13"}, shipped(H200))
    assert choice.name == "triton"
    assert re.fullmatch(r"flashinfer is not faster on NVIDIA H200 \(measured [\d-]+\)", choice.reason)


def test_the_table_of_ops_has_the_backend_in_it():
    names = {ops_for("triton", name).gdn_prefill.__name__ for name in ("fla", "flashinfer")}
    assert names == {"gdn_prefill_fla", "gdn_prefill_flashinfer"}
    assert ops_for("triton", "torch").gdn_prefill is ops_for("torch").gdn_prefill
    assert ops_for("triton", "fla").gdn_decode is ops_for("triton").gdn_decode
