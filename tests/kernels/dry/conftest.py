"""Compile for GPUs that are not here.  These tests share a process with nothing that uses Triton's interpreter."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from steps import Row, make_step, moved

from hotstart.kernels import dry, gdn_external
from hotstart.kernels.backends import ops_for
from hotstart.kernels.launch import LAUNCHERS, LaunchSpace
from hotstart.kernels.ops import AttentionDims, GdnDims, MoeDims
from hotstart.kernels.step import StepInputs


@pytest.fixture(autouse=True)
def _fp_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9 warns about kernels that leave it open; ours do not, the foreign ones of these tests do."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Invented times belong into no cache that a user has."""
    monkeypatch.setenv("HOTSTART_CACHE", str(tmp_path / "hotstart"))


@pytest.fixture
def sm_120() -> Iterator[dry.Gpu]:
    with dry.gpu("sm_120") as gpu:
        yield gpu


def step_on(device: torch.device) -> StepInputs:
    """Two decoding rows and a padding one, a prompt that starts and one that goes on."""
    step = make_step(
        [Row(1, read=0, write=0), Row(1, read=1, write=2)], [Row(3, write=3), Row(3, read=4, write=4)], padding=1
    )
    return moved(step, device)


@pytest.fixture
def space() -> LaunchSpace:
    return LaunchSpace(
        hidden_size=320,
        eps=1e-6,
        activation_dtypes=(torch.bfloat16,),
        step=step_on,
        num_tokens=9,
        num_slots=6,
        num_pages=1,
        gdn=GdnDims(num_key_heads=2, num_value_heads=6, key_dim=64, value_dim=48, conv_width=4, eps=1e-6),
        attention=AttentionDims(num_heads=6, num_kv_heads=1, head_dim=80, rotary_dim=20, eps=1e-6),
        moe=MoeDims(num_experts=4, top_k=2, width=72, renormalise=True, shares=True),
        mlp_widths=(1100,),
        shared_widths=(136,),
        vocab_size=1300,
    )


@pytest.fixture
def own_kernels() -> set[str]:
    """Names of all kernels but those that stand around a library's prefill."""
    ops_for("triton")  # imports them all
    return {launcher.kernel.name for launcher in LAUNCHERS if launcher.warmup is not gdn_external.warmup}
