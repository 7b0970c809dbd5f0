"""Models by their name in config.json."""

import torch

from hotstart.config.model import ModelConfig
from hotstart.errors import ConfigError, UnsupportedModel
from hotstart.kernels.ops import Ops
from hotstart.models.qwen3_5 import Qwen35
from hotstart.models.qwen3_next import Qwen3Next

__all__ = ["ARCHITECTURES", "build_model", "resolve_dtype", "resolve_state_dtype"]

# The multimodal classes are served as text: their vision tensors are skipped.
ARCHITECTURES: dict[str, type[Qwen35]] = {
    "Qwen3NextForCausalLM": Qwen3Next,
    "Qwen3_5ForCausalLM": Qwen35,
    "Qwen3_5ForConditionalGeneration": Qwen35,
    "Qwen3_5MoeForCausalLM": Qwen35,
    "Qwen3_5MoeForConditionalGeneration": Qwen35,
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_model(
    config: ModelConfig, ops: Ops, dtype: torch.dtype, state_dtype: torch.dtype, num_positions: int
) -> Qwen35:
    """The model on the meta device; `weights.load_weights` or `weights.fill_random` gives it memory and values.

    `num_positions` is the longest sequence it will be asked for (the length of its rotary table).
    """
    if config.architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"architecture {config.architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[config.architecture](config, ops, dtype, state_dtype, num_positions)


def resolve_dtype(config: ModelConfig, wish: str) -> torch.dtype:
    """Of weights and activations: the user's wish, or for "auto" what the checkpoint names."""
    name = config.dtype if wish == "auto" else wish
    if name is None:
        raise ConfigError("config.json names no dtype; choose one with --dtype bfloat16 or --dtype float32")
    return _dtype(name)


def resolve_state_dtype(config: ModelConfig, wish: str) -> torch.dtype:
    """Of the recurrent state: the user's wish, or for "auto" what the checkpoint names; float32 if it names none."""
    return _dtype(config.mamba_ssm_dtype if wish == "auto" else wish)


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not supported; supported: auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]
