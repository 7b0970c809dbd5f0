"""The prefill kernels at sizes that no published model has: they compile, and fit the shared memory of the card."""

from dataclasses import replace

import pytest
import torch
from steps import Row, make_step, moved

from hotstart.kernels import dry, gdn_chunked
from hotstart.kernels.launch import recording
from hotstart.kernels.ops import GdnDims

LARGE = GdnDims(num_key_heads=1, num_value_heads=3, key_dim=256, value_dim=256, conv_width=4, eps=1e-6)
CASES = [
    ("sm_90", LARGE, torch.bfloat16, 64),
    ("sm_90", LARGE, torch.float32, 32),
    ("sm_89", LARGE, torch.float32, 16),
    ("sm_120", replace(LARGE, key_dim=96, value_dim=192), torch.float16, 64),
]


@pytest.mark.parametrize(("target", "dims", "dtype", "chunk_length"), CASES, ids=lambda value: str(value)[-20:])
def test_every_binary_fits(target, dims, dtype, chunk_length, space):
    space = replace(space, gdn=dims, activation_dtypes=(dtype,))
    with dry.gpu(target) as gpu, recording() as record:
        step = moved(make_step([], [Row(chunk_length + 1, write=1)], chunk_length=chunk_length), "meta")
        space = replace(space, step=lambda device: step, num_tokens=chunk_length + 1)
        gdn_chunked.warmup(space)
    shared = {key: binary.metadata.shared for key, binary in record.binaries.items()}
    assert len(shared) >= 4
    assert not [f"{key}: {size}" for key, size in shared.items() if size > gpu.shared_bytes]
