"""The floors of bench/floors.py, against sums made another way."""

import pytest

from bench.floors import COPY_BYTES_PER_S, FLOPS_PER_S, Floors
from bench.shapes import model_config


@pytest.mark.parametrize("name", ["qwen3.5-0.8b", "qwen3.5-4b"])
def test_a_token_reads_every_weight_of_a_dense_model_once(name):
    config = model_config(name)
    assert config.tie_word_embeddings  # or the embedding would be left out
    assert Floors(config).weights_s() * COPY_BYTES_PER_S == pytest.approx(2 * config.num_parameters, rel=1e-3)


def test_a_step_reads_the_experts_that_its_tokens_choose():
    floors = Floors(model_config("next-small"))
    assert floors.experts_read(1) == pytest.approx(10)
    assert 0.999 * 64 < floors.experts_read(64) <= 64


def test_long_prompts_are_products_and_short_ones_weights():
    config = model_config("qwen3.5-4b")
    floors, body = Floors(config), config.num_parameters - config.vocab_size * config.hidden_size
    assert floors.prompt_s(1) == floors.weights_s()
    assert floors.prompt_s(1024) == pytest.approx(2 * 1024 * body / FLOPS_PER_S, rel=0.06)
    heads = config.num_attention_heads * config.head_dim
    quadratic = floors.prompt_flops(8192) - 8 * floors.prompt_flops(1024)
    assert quadratic == pytest.approx(8 * 2 * heads * (8192**2 - 8 * 1024**2), rel=0.01)


def test_states_of_half_the_width_take_less():
    config = model_config("qwen3.5-4b")
    one, half = (Floors(config, dtype).decode_s(64, 0) for dtype in ("float32", "bfloat16"))
    slots = 64 * 24 * 32 * 128 * 128 * 2 * 2  # read and written
    assert (one - half) * COPY_BYTES_PER_S == pytest.approx(slots)
