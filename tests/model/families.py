"""Checkpoints of every family, written by transformers' own classes: tiny ones, no two of whose sizes are alike, and
for a GPU such as have the published heads and experts, and only fewer of all.

Weights are rounded to bfloat16 when they are made, so that a float32 and a bfloat16 model read the same values, and
scaled so that logits spread by 2.5.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

VOCAB = 211
LOGIT_SPREAD = 2.5
ROPE = {"rope_type": "default", "rope_theta": 10_000_000.0}


@dataclass(frozen=True)
class Family:
    """What a case adds to the sizes that all share."""

    name: str
    model_class: str
    sizes: dict[str, Any]
    nested: bool = False  # text_config and a vision tower, as the multimodal checkpoints
    stacked: bool = False  # experts as one tensor
    float32_gates: bool = False  # A_log and the gated norm's weight stored in float32, as Qwen3.5's
    shards: int = 1
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=dict)
    vocab: int = VOCAB


def _sizes(hidden: int, heads: tuple[int, int], head_dim: int, gdn: tuple[int, int, int, int], **more: Any) -> Any:
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dim,
        "linear_num_key_heads": gdn[0],
        "linear_num_value_heads": gdn[1],
        "linear_key_head_dim": gdn[2],
        "linear_value_head_dim": gdn[3],
        **more,
    }


_MOE = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56}
_ALIKE = _MOE | {"shared_expert_intermediate_size": 40}  # as in every published size

FAMILIES = [
    Family(
        "dense-tied",
        "Qwen3_5ForCausalLM",
        _sizes(72, (3, 1), 32, (3, 3, 24, 16), intermediate_size=136, num_hidden_layers=4),
        tied=True,
        float32_gates=True,
    ),
    Family(
        "dense-nested",
        "Qwen3_5ForConditionalGeneration",
        _sizes(80, (6, 2), 24, (2, 6, 16, 40), intermediate_size=104, num_hidden_layers=8),
        nested=True,
        shards=3,
        rope={"partial_rotary_factor": 0.5, "mrope_section": [2, 2, 2], "mrope_interleaved": True},
    ),
    Family(
        "moe-stacked",
        "Qwen3_5MoeForConditionalGeneration",
        _sizes(64, (4, 2), 32, (3, 6, 16, 24), num_hidden_layers=4, **_ALIKE),
        nested=True,
        stacked=True,
        rope={"mrope_section": [2, 1, 1], "mrope_interleaved": True},
    ),
    Family(
        "moe-per-expert",
        "Qwen3_5MoeForCausalLM",
        _sizes(56, (5, 5), 16, (1, 4, 40, 16), num_hidden_layers=4, **_MOE),
    ),
    Family(
        "next",
        "Qwen3NextForCausalLM",
        _sizes(
            88, (6, 3), 16, (3, 6, 16, 24), intermediate_size=72, num_hidden_layers=6, mlp_only_layers=[1],
            full_attention_interval=3, norm_topk_prob=True, **_ALIKE,
        ),
        shards=2,
        rope={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    Family(
        "next-unnormalised",
        "Qwen3NextForCausalLM",
        _sizes(
            64, (2, 1), 48, (2, 8, 24, 8), intermediate_size=72, num_hidden_layers=3, norm_topk_prob=False,
            layer_types=["full_attention", "linear_attention", "linear_attention"], **_MOE,
        ),
    ),
]  # fmt: skip

_REAL_ROPE = {"partial_rotary_factor": 0.25}
_REAL_MOE = {"num_experts": 32, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
REAL_HEADS = [
    Family(
        "dense-27b",
        "Qwen3_5ForCausalLM",
        _sizes(1536, (24, 4), 256, (16, 48, 128, 128), intermediate_size=4096, num_hidden_layers=4),
        rope=_REAL_ROPE,
        vocab=1000,
    ),
    Family(
        "moe-35b-a3b",
        "Qwen3_5MoeForCausalLM",
        _sizes(2048, (16, 2), 256, (16, 32, 128, 128), num_hidden_layers=4, num_experts_per_tok=8, **_REAL_MOE),
        rope=_REAL_ROPE,
        vocab=1000,
    ),
    Family(
        "next-80b-a3b",
        "Qwen3NextForCausalLM",
        _sizes(
            2048, (16, 2), 256, (16, 32, 128, 128), num_hidden_layers=4, num_experts_per_tok=10, norm_topk_prob=True,
            **_REAL_MOE,
        ),
        shards=2,
        rope=_REAL_ROPE,
        vocab=1000,
    ),
]  # fmt: skip


def make_checkpoint(family: Family, folder: Path, device: str = "cpu") -> Path:
    torch.manual_seed(len(family.name))
    with torch.device(device):
        model = _build(family)
        _fill(model, family)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=_shard_bytes(model, family))
    if family.stacked:
        _rewrite(folder, _stack_experts)
    if family.float32_gates:
        _rewrite(folder, _widen_gates)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    return folder


def _build(family: Family) -> Any:
    text = {
        "vocab_size": family.vocab,
        "max_position_embeddings": 512,
        "eos_token_id": 9,
        "tie_word_embeddings": family.tied,
        "rope_parameters": {**ROPE, **family.rope},
        **family.sizes,
    }
    model_class = getattr(transformers, family.model_class)
    if family.nested:
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "num_position_embeddings": 16}
        vision["out_hidden_size"] = text["hidden_size"]
        config = model_class.config_class(text_config=text, vision_config=vision, tie_word_embeddings=family.tied)
    else:
        config = model_class.config_class(**text)
    return model_class(config).eval()


@torch.no_grad()
def _fill(model: Any, family: Family) -> None:
    """Weights that keep every branch of the network lively, so that a mistake in any of them moves the logits."""
    for name, weight in model.named_parameters():
        if name.endswith("A_log"):
            weight.uniform_(0.2, 8.0).log_()
        elif name.endswith("dt_bias"):
            weight.normal_(-1.0, 1.0)
        elif name.endswith("linear_attn.norm.weight"):
            weight.normal_(1.0, 0.2)
        elif weight.ndim == 1:
            weight.normal_(0.0, 0.2)
        elif "embed_tokens" in name:
            weight.normal_(0.0, 0.07 if family.tied else 1.0)
        elif name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj")):
            # Branches weaker than the residual: else rounding errors double with every layer, in any engine.  A tied
            # model's must outweigh its small embedding, or every token would predict itself.
            weight.normal_(0.0, (0.16 if family.tied else 0.5) / math.sqrt(weight.shape[-1]))
        elif "conv1d" in name:
            weight.normal_(0.0, 0.5)
        else:
            weight.normal_(0.0, 1.0 / math.sqrt(weight.shape[-1]))
    for name, layer in model.named_modules():
        if name.endswith("linear_attn"):
            _align_keys_with_queries(layer)
    ids = torch.randint(family.vocab, (1, 100))
    text = model.model.language_model if family.nested else model.model
    # The zero-centred norm before the head is the one place that scales tied and untied logits alike.
    scale = LOGIT_SPREAD / model(ids).logits.std()
    text.norm.weight.add_(1.0).mul_(scale).sub_(1.0)
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())


def _align_keys_with_queries(layer: Any) -> None:
    """As training does: else a state's first readings are near zero, and normalising them magnifies any rounding."""
    heads, dim = layer.num_k_heads, layer.head_k_dim
    width = heads * dim
    conv = layer.conv1d.weight
    pairs = [(conv[:width], conv[width : 2 * width])]
    if hasattr(layer, "in_proj_qkv"):
        rows = layer.in_proj_qkv.weight
        pairs.append((rows[:width], rows[width : 2 * width]))
    else:
        by_head = layer.in_proj_qkvz.weight.view(heads, -1, layer.hidden_size)
        pairs.append((by_head[:, :dim], by_head[:, dim : 2 * dim]))
    for query, key in pairs:
        key.mul_(0.6).add_(query, alpha=0.8)


def _shard_bytes(model: Any, family: Family) -> int:
    return 2 * sum(weight.numel() for weight in model.parameters()) // family.shards + 4096


def _rewrite(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _stack_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layout of the published bfloat16 checkpoints."""
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for path in sorted({name.partition(".experts.")[0] for name in tensors if ".experts.0." in name}):
        experts = [
            [tensors[f"{path}.experts.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")]
            for e in range(_MOE["num_experts"])
        ]
        stacked[f"{path}.experts.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in experts])
        stacked[f"{path}.experts.down_proj"] = torch.stack([down for _, _, down in experts])
    return stacked


def _widen_gates(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("A_log", "linear_attn.norm.weight")
    return {name: tensor.float() if name.endswith(names) else tensor for name, tensor in tensors.items()}
