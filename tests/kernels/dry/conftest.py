"""Compile for GPUs that are not here.  These tests share a process with nothing that uses Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch

from hotstart.kernels import dry
from hotstart.kernels.launch import LaunchSpace
from hotstart.kernels.ops import GdnDims


@pytest.fixture
def sm_120() -> Iterator[dry.Gpu]:
    with dry.gpu("sm_120") as gpu:
        yield gpu


@pytest.fixture
def space() -> LaunchSpace:
    return LaunchSpace(
        hidden_size=320,
        eps=1e-6,
        activation_dtypes=(torch.bfloat16,),
        step=lambda device: None,  # type: ignore[arg-type,return-value]  # no kernel here reads the step yet
        num_tokens=8,
        num_slots=4,
        gdn=GdnDims(num_key_heads=2, num_value_heads=6, key_dim=64, value_dim=48, conv_width=4, eps=1e-6),
    )
