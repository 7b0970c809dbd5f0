"""The published sizes of the families we serve, by name: what `hotstart check` compiles for without a checkpoint.

Shapes only.  A checkpoint's own config.json is what the engine reads.
"""

from typing import Any

from hotstart.config.model import ModelConfig, parse_model_config
from hotstart.errors import ConfigError

__all__ = ["PUBLISHED", "is_published", "published_config"]

_SHARED: dict[str, Any] = {
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 262144,
    "vocab_size": 248320,
    "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}


def _dense(hidden: int, layers: int, heads: int, kv_heads: int, value_heads: int, width: int) -> dict[str, Any]:
    return _SHARED | {
        "model_type": "qwen3_5_text",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "linear_num_value_heads": value_heads,
        "intermediate_size": width,
    }


def _moe(
    hidden: int, layers: int, heads: int, kv_heads: int, value_heads: int, experts: int, top_k: int, width: int
) -> dict[str, Any]:
    return _dense(hidden, layers, heads, kv_heads, value_heads, 0) | {
        "model_type": "qwen3_5_moe_text",
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": width,
    }


_TIED = {"tie_word_embeddings": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3.5-0.8b": _dense(1024, 24, 8, 2, 16, 3584) | _TIED,
    "qwen3.5-2b": _dense(2048, 24, 8, 2, 16, 6144) | _TIED,
    "qwen3.5-4b": _dense(2560, 32, 16, 4, 32, 9216) | _TIED,
    "qwen3.5-9b": _dense(4096, 32, 16, 4, 32, 12288),
    "qwen3.5-27b": _dense(5120, 64, 24, 4, 48, 17408),
    "qwen3.5-35b-a3b": _moe(2048, 40, 16, 2, 32, 256, 8, 512),
    "qwen3.5-122b-a10b": _moe(3072, 48, 32, 2, 64, 256, 8, 1024),
    "qwen3.5-397b-a17b": _moe(4096, 60, 32, 2, 64, 512, 10, 1024),
    "qwen3.8-2.4t-a95b": _moe(8192, 92, 64, 4, 128, 512, 10, 2048),
    "qwen3-next-80b-a3b": _moe(2048, 48, 16, 2, 32, 512, 10, 512) | {"model_type": "qwen3_next", "vocab_size": 151936},
}


def is_published(name: str) -> bool:
    return _key(name) in PUBLISHED


def published_config(name: str) -> ModelConfig:
    if not is_published(name):
        raise ConfigError(
            f"{name!r} is neither a folder with a config.json nor a published size: {', '.join(PUBLISHED)}"
        )
    return parse_model_config(dict(PUBLISHED[_key(name)]), {})


def _key(name: str) -> str:
    return name.lower().removeprefix("qwen/")
