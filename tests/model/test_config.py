"""Reading config.json: both nestings, both spellings, and a clear refusal of everything else."""

import json
from pathlib import Path
from typing import Any

import pytest

from hotstart.config.model import MODEL_TYPES, read_model_config
from hotstart.config.rope import Rope
from hotstart.errors import CheckpointError, ConfigError, UnsupportedModel
from hotstart.models import ARCHITECTURES

# Shaped as the published Qwen3-Next-80B-A3B: flat, no layer_types, rope spelled the old way.
NEXT: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.0.dev0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# Shaped as the published Qwen3.5-4B: nested, layer_types and an interval, rope spelled the new way.
DENSE: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5",
    "text_config": {
        "attention_bias": False,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": 248044,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 9216,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 248320,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 248057,
    "vision_config": {"depth": 24},
    "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}


def write(folder: Path, config: Any, generation: Any = None) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`base` with text fields replaced; a value of ... removes the field."""
    text = base.get("text_config", base)
    text = {name: value for name, value in (text | changes).items() if value is not ...}
    return base | {"text_config": text} if "text_config" in base else text


def test_published_qwen3_next(tmp_path, caplog_hotstart):
    config = read_model_config(write(tmp_path, NEXT, {"eos_token_id": [151645, 151643]}))
    assert config.layer_types == (*["linear_attention"] * 3, "full_attention") * 12
    assert config.rope == Rope(theta=1e7, rotary_dim=64)
    assert config.eos_token_ids == (151643, 151645)
    assert (config.dtype, config.mamba_ssm_dtype, config.tie_word_embeddings) == ("bfloat16", "float32", False)
    assert config.moe_layers == (True,) * 48
    assert config.intermediate_size == 0
    assert round(config.num_parameters / 1e9, 3) == 79.674
    assert not caplog_hotstart.records


def test_published_qwen3_5(tmp_path, caplog_hotstart):
    config = read_model_config(write(tmp_path, DENSE, {"eos_token_id": [248046, 248044]}))
    assert config.architecture == "Qwen3_5ForConditionalGeneration"
    assert config.rope == Rope(theta=1e7, rotary_dim=64)
    assert config.eos_token_ids == (248044, 248046)
    assert config.moe_layers == (False,) * 32
    assert config.tie_word_embeddings
    assert round(config.num_parameters / 1e9, 3) == 4.206
    assert not caplog_hotstart.records


def test_spellings_of_one_thing(tmp_path):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}
    rope = read_model_config(write(tmp_path, changed(NEXT, rope_scaling=yarn)))
    assert (rope.rope.theta, rope.rope.rotary_dim, rope.max_position_embeddings) == (1e7, 64, 2**20)
    inner_wins = changed(DENSE, rope_theta=5.0, partial_rotary_factor=1.0)
    assert read_model_config(write(tmp_path, inner_wins)).rope == Rope(1e7, 64)
    defaults = changed(NEXT, rope_theta=..., partial_rotary_factor=..., rope_scaling=...)
    assert read_model_config(write(tmp_path, defaults)).rope == Rope(10_000.0, 64)
    # Named at the root alone, or nowhere.
    root = changed(DENSE, dtype=..., tie_word_embeddings=...) | {"torch_dtype": "torch.float16"}
    config = read_model_config(write(tmp_path, root))
    assert (config.dtype, config.tie_word_embeddings) == ("float16", True)
    assert read_model_config(write(tmp_path, changed(NEXT, torch_dtype=...))).dtype is None
    some_dense = read_model_config(write(tmp_path, changed(NEXT, mlp_only_layers=[0, 47], decoder_sparse_step=2)))
    assert [i for i, moe in enumerate(some_dense.moe_layers) if moe] == list(range(1, 47, 2))
    assert some_dense.intermediate_size == 5120


def test_unknown_fields_are_named_once(tmp_path, caplog_hotstart):
    config = changed(DENSE, zebra=1, attention_sink=True) | {"apple": {}}
    read_model_config(write(tmp_path, config))
    (record,) = caplog_hotstart.records
    assert "apple, attention_sink, zebra" in record.getMessage()


REFUSED = {
    "hidden_act": "gelu",
    "output_gate_type": "sigmoid",
    "attn_output_gate": False,
    "attention_bias": True,
    "use_sliding_window": True,
    "mamba_ssm_dtype": "float8_e4m3fn",
    "dtype": "float64",
    "layer_types": ["linear_attention"] * 31 + ["sliding_attention"],
    "rope_type": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
    "mscale": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}},
    "full_attention": {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_known_field_that_asks_for_what_we_lack_is_named(field, tmp_path):
    value = REFUSED[field]
    changes = value if isinstance(value, dict) else {field: value}
    with pytest.raises(UnsupportedModel, match=field):
        read_model_config(write(tmp_path, changed(DENSE, **changes)))


SENSELESS = {
    "hidden_size": [..., None, -1, 0, 2.5, "64", True],
    "num_attention_heads": [3],  # not a multiple of the key-value heads
    "linear_num_value_heads": [24],
    "rms_norm_eps": [0, "x", float("inf"), float("nan")],
    "layer_types": [["full_attention"], "full_attention", [1] * 32],
    "partial_rotary_factor": [{"rope_parameters": {"partial_rotary_factor": f}} for f in (0.001, 1.5, -1)],
    "eos_token_id": [248320, [1, -2], "1", [True]],
    "tie_word_embeddings": ["yes", None],
    "rope_parameters": ["default", [1]],
    "intermediate_size": [..., {"num_experts": 4, "mlp_only_layers": [3], "intermediate_size": 0}],
    "text_config": [{"text_config": []}],
    "num_experts_per_tok": [{"num_experts": 4, "num_experts_per_tok": 5}],
    "architectures": [{"architectures": "Qwen3_5ForCausalLM"}],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in SENSELESS.items() for v in values], ids=str)
def test_a_senseless_value_is_named(field, value, tmp_path):
    root_fields = {"text_config", "architectures"}
    changes = value if isinstance(value, dict) else {field: value}
    config = DENSE | changes if field in root_fields else changed(DENSE, **changes)
    with pytest.raises(ConfigError, match=field):
        read_model_config(write(tmp_path, config))


def test_what_is_not_supported_is_said(tmp_path):
    for config in ({}, {"model_type": "llama"}, DENSE | {"architectures": ["Qwen3_5ForSequenceClassification"]}):
        with pytest.raises(UnsupportedModel, match="supported: "):
            read_model_config(write(tmp_path, config))
    for quantised in (DENSE, changed(DENSE, dtype=...)):
        quantised = quantised | {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}
        with pytest.raises(UnsupportedModel, match=r"'fp8'.* 8\.4 GB of weights in bfloat16"):
            read_model_config(write(tmp_path, quantised))
    assert set(MODEL_TYPES.values()) == set(ARCHITECTURES)


def test_unreadable_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: No such file.*download"):
        read_model_config(tmp_path / "nowhere")
    for text in ("", "{", "[]", "\0", "[" * 100_000, '"text"'):
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_model_config(write(tmp_path, text))
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_model_config(tmp_path)
    write(tmp_path, DENSE)
    (tmp_path / "generation_config.json").write_text("nonsense")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read_model_config(tmp_path)
