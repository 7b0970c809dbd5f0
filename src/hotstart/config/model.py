"""ModelConfig: strict reading of a checkpoint's config.json.

A field that we know and whose value asks for something we do not implement is an error that names it; fields we do
not know are named in one warning.  Fields carry Hugging Face's names; nested and flat files, old and new spellings
come out as the same object.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart import log
from hotstart.config.fields import Fields
from hotstart.config.files import read_json, read_optional_json
from hotstart.config.rope import Rope, read_rope
from hotstart.errors import ConfigError, UnsupportedModel

__all__ = ["ModelConfig", "parse_model_config", "read_model_config"]

# model_type -> the architecture meant where `architectures` is missing
MODEL_TYPES = {
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
DTYPES = ("float32", "bfloat16", "float16")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Fields that must have one of these values where they appear: anything else would change the mathematics.
_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "output_gate_type": ("silu", "swish"),
    "attn_output_gate": (True,),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
}
# Fields that change nothing in text inference; reading them is optional, knowing them is not.
# fmt: off
_HARMLESS = frozenset([
    "architectures", "transformers_version", "_name_or_path", "name_or_path", "auto_map", "id2label", "label2id",
    "problem_type", "return_dict", "is_encoder_decoder", "chunk_size_feed_forward", "output_attentions",
    "output_hidden_states", "use_cache", "initializer_range", "attention_dropout", "output_router_logits",
    "router_aux_loss_coef", "sliding_window", "max_window_layers", "bos_token_id", "pad_token_id",
    "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "language_model_only", "vision_config",
    "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
])
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    layer_types: tuple[str, ...]  # "linear_attention" (Gated DeltaNet) or "full_attention"
    max_position_embeddings: int  # with YaRN: the extended length
    rms_norm_eps: float
    tie_word_embeddings: bool
    dtype: str | None  # as the checkpoint names it; None: it does not
    eos_token_ids: tuple[int, ...]  # of config.json and generation_config.json together

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: Rope

    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    mamba_ssm_dtype: str  # of the recurrent state

    moe_layers: tuple[bool, ...]  # by layer: experts or a dense feed-forward
    intermediate_size: int  # of dense layers; 0 if there are none
    num_experts: int  # this and the rest: 0 if no layer has experts
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    norm_topk_prob: bool

    @property
    def num_parameters(self) -> int:
        """Of the text model, as loaded: no vision tower, no MTP layer."""
        D, V = self.hidden_size, self.vocab_size
        heads, kv_heads = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = D * (2 * heads + 2 * kv_heads) + heads * D + 2 * self.head_dim
        values = self.linear_num_value_heads * self.linear_value_head_dim
        channels = 2 * self.linear_num_key_heads * self.linear_key_head_dim + values
        gdn = D * (channels + 2 * values + 2 * self.linear_num_value_heads)
        gdn += channels * self.linear_conv_kernel_dim + 2 * self.linear_num_value_heads + self.linear_value_head_dim
        dense = 3 * D * self.intermediate_size
        experts = self.num_experts * (D + 3 * D * self.moe_intermediate_size)
        moe = experts + 3 * D * self.shared_expert_intermediate_size + D
        total = V * D * (1 if self.tie_word_embeddings else 2) + D
        for layer_type, is_moe in zip(self.layer_types, self.moe_layers, strict=True):
            total += 2 * D + (attention if layer_type == "full_attention" else gdn) + (moe if is_moe else dense)
        return total


def read_model_config(folder: str | Path) -> ModelConfig:
    """Read config.json, and generation_config.json if there is one.

    Raises CheckpointError (no such file, no JSON), ConfigError (a value that makes no sense) or UnsupportedModel.
    """
    folder = Path(folder)
    root = read_json(folder / "config.json")
    return parse_model_config(root, read_optional_json(folder / "generation_config.json"))


def parse_model_config(root: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    """From the content of config.json and generation_config.json.  Raises ConfigError or UnsupportedModel."""
    architecture, model_type = _identify(root)
    text = root.get("text_config", root)
    if not isinstance(text, dict):
        raise ConfigError(f"config.json: text_config is {text!r}, expected an object")
    fields = Fields(text, "config.json: text_config." if text is not root else "config.json: ")
    outer = Fields(root if text is not root else {}, "config.json: ")

    _refuse_what_we_lack(text, fields.where)
    config = _read(fields, outer, Fields(generation, "generation_config.json: "), architecture, model_type)
    _refuse_quantisation(root.get("quantization_config") or text.get("quantization_config"), config)
    unknown = sorted(
        {name for name in fields.unread() if name not in _HARMLESS and name not in _IMPLEMENTED}
        | {name for name in outer.unread() if name not in _HARMLESS}
    )
    if unknown:
        log.warning("config.json has fields unknown to hotstart, ignored", fields=", ".join(unknown))
    return config


def _identify(root: dict[str, Any]) -> tuple[str, str]:
    model_type, architectures = root.get("model_type"), root.get("architectures")
    if model_type not in MODEL_TYPES:
        raise UnsupportedModel(f"model_type {model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
    if not architectures:
        return MODEL_TYPES[model_type], model_type
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise ConfigError(f"config.json: architectures is {architectures!r}, expected a list of names")
    if architectures[0] not in MODEL_TYPES.values():
        supported = ", ".join(MODEL_TYPES.values())
        raise UnsupportedModel(f"architecture {architectures[0]!r} is not supported; supported: {supported}")
    return architectures[0], model_type


def _refuse_what_we_lack(text: dict[str, Any], where: str) -> None:
    for name, accepted in _IMPLEMENTED.items():
        if name in text and text[name] not in accepted:
            raise UnsupportedModel(
                f"{where}{name} is {text[name]!r}, hotstart implements only {' or '.join(map(repr, accepted))}"
            )


def _refuse_quantisation(quantization: Any, config: ModelConfig) -> None:
    if not quantization:
        return
    method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
    dtype = config.dtype or "bfloat16"
    num_bytes = config.num_parameters * DTYPE_BYTES[dtype]
    size = f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
    raise UnsupportedModel(
        f"the checkpoint is quantised (quant_method {method!r}), hotstart loads unquantised weights only; "
        f"take the unquantised checkpoint: {size} of weights in {dtype}"
    )


def _read(fields: Fields, outer: Fields, generation: Fields, architecture: str, model_type: str) -> ModelConfig:
    fields.mark("model_type", "full_attention_interval", "quantization_config")
    outer.mark("model_type", "text_config", "quantization_config")
    vocab_size = fields.integer("vocab_size")
    num_layers = fields.integer("num_hidden_layers")
    head_dim = fields.integer("head_dim")
    rope, max_positions = read_rope(fields, head_dim, fields.integer("max_position_embeddings"))
    dtypes = [f.optional_choice(name, DTYPES) for f in (fields, outer) for name in ("dtype", "torch_dtype")]
    eos = {i for f in (fields, outer, generation) for i in f.integers("eos_token_id")}
    if outside := sorted(i for i in eos if i >= vocab_size):
        raise ConfigError(f"eos_token_id {outside} is outside the vocabulary of {vocab_size}; correct the config files")
    # The published files name it at either level.
    tied = [f.boolean("tie_word_embeddings", default=False) for f in (fields, outer)]
    config = ModelConfig(
        architecture=architecture,
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=fields.integer("hidden_size"),
        num_hidden_layers=num_layers,
        layer_types=_read_layer_types(fields, num_layers),
        max_position_embeddings=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
        tie_word_embeddings=any(tied),
        dtype=next((dtype for dtype in dtypes if dtype), None),
        eos_token_ids=tuple(sorted(eos)),
        num_attention_heads=fields.integer("num_attention_heads"),
        num_key_value_heads=fields.integer("num_key_value_heads"),
        head_dim=head_dim,
        rope=rope,
        linear_num_key_heads=fields.integer("linear_num_key_heads"),
        linear_num_value_heads=fields.integer("linear_num_value_heads"),
        linear_key_head_dim=fields.integer("linear_key_head_dim"),
        linear_value_head_dim=fields.integer("linear_value_head_dim"),
        linear_conv_kernel_dim=fields.integer("linear_conv_kernel_dim", default=4, minimum=2),
        mamba_ssm_dtype=fields.optional_choice("mamba_ssm_dtype", DTYPES[:2]) or "float32",
        **_read_feed_forward(fields, num_layers),
    )
    fields.divides("num_key_value_heads", "num_attention_heads")
    fields.divides("linear_num_key_heads", "linear_num_value_heads")
    return config


def _read_layer_types(fields: Fields, num_layers: int) -> tuple[str, ...]:
    interval = fields.integer("full_attention_interval", default=4)
    layer_types = fields.strings("layer_types")
    if layer_types is None:
        return tuple("linear_attention" if (i + 1) % interval else "full_attention" for i in range(num_layers))
    if len(layer_types) != num_layers:
        raise ConfigError(f"{fields.where}layer_types names {len(layer_types)} layers, num_hidden_layers {num_layers}")
    for i, kind in enumerate(layer_types):
        if kind not in ("linear_attention", "full_attention"):
            raise UnsupportedModel(
                f"{fields.where}layer_types[{i}] is {kind!r}, hotstart implements linear_attention and full_attention"
            )
    return layer_types


def _read_feed_forward(fields: Fields, num_layers: int) -> dict[str, Any]:
    num_experts = fields.integer("num_experts", default=0, minimum=0)
    dense_layers = fields.integers("mlp_only_layers")
    step = fields.integer("decoder_sparse_step", default=1)
    moe = tuple(num_experts > 0 and i not in dense_layers and (i + 1) % step == 0 for i in range(num_layers))
    fields.mark("intermediate_size")
    dense_width = 0 if all(moe) else fields.integer("intermediate_size")
    if not any(moe):
        names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
        fields.mark(*names, "norm_topk_prob")
        return {"moe_layers": moe, "intermediate_size": dense_width, "norm_topk_prob": True} | dict.fromkeys(names, 0)
    top_k = fields.integer("num_experts_per_tok")
    if top_k > num_experts:
        raise ConfigError(f"{fields.where}num_experts_per_tok is {top_k}, there are {num_experts} experts")
    return {
        "moe_layers": moe,
        "intermediate_size": dense_width,
        "num_experts": num_experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": fields.integer("moe_intermediate_size"),
        "shared_expert_intermediate_size": fields.integer("shared_expert_intermediate_size"),
        # Qwen3.5 always renormalises and has no such field.
        "norm_topk_prob": fields.boolean("norm_topk_prob", default=True),
    }
