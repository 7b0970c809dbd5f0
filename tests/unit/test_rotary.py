"""The rotary table against transformers' frequencies, and the rotation of a part of each head."""

import pytest
import torch
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hotstart.kernels.rotary import Yarn, apply_rotary, rope_table

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"factor": 4.0},
        {"factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0},
        {"factor": 2.0, "attention_factor": 1.5},
    ],
    ids=str,
)
def test_table_has_transformers_frequencies(extra):
    yarn = Yarn(original_max_positions=512, **extra) if extra else None
    kind = {"rope_type": "yarn", "original_max_position_embeddings": 512} if extra else {"rope_type": "default"}
    rope = {"rope_theta": 1e6, **kind, **extra}
    config = Qwen3Config(hidden_size=256, num_attention_heads=2, head_dim=64, rope_parameters=rope)
    if extra:
        frequencies, scale = ROPE_INIT_FUNCTIONS["yarn"](config, CPU)
    else:
        frequencies, scale = 1e6 ** -(torch.arange(0, 64, 2) / 64), 1.0
    table = rope_table(300, 64, 1e6, yarn, CPU)
    angles = torch.arange(300.0)[:, None] * frequencies
    torch.testing.assert_close(table, torch.cat([angles.cos(), angles.sin()], -1) * scale, rtol=1e-4, atol=1e-4)


def test_rotation_turns_pairs_and_leaves_the_rest():
    x = torch.randn(5, 3, 10)
    table = rope_table(9, 6, 100.0, None, CPU)[torch.tensor([0, 8, 2, 2, 5])]
    turned = x.clone()
    apply_rotary(turned, table)
    pairs, angles = torch.complex(x[..., :3], x[..., 3:6]), torch.complex(table[:, None, :3], table[:, None, 3:])
    wanted = pairs * angles
    torch.testing.assert_close(turned, torch.cat([wanted.real, wanted.imag, x[..., 6:]], -1))
    assert torch.equal(turned[0], x[0])
