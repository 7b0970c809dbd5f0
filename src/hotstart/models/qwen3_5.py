"""Qwen3.5, dense and with experts, text part: three Gated DeltaNet layers, then one of gated attention, and again."""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from hotstart.cache.layout import CacheLayout, cache_layout
from hotstart.cache.tensors import CacheTensors
from hotstart.config.model import ModelConfig
from hotstart.kernels.ops import Ops
from hotstart.kernels.step import StepInputs
from hotstart.layers.attention import GatedAttention
from hotstart.layers.embedding import Embedding
from hotstart.layers.gated_delta_net import GatedDeltaNet
from hotstart.layers.linear import Layer, Linear
from hotstart.layers.mlp import MLP
from hotstart.layers.moe import SparseMoE
from hotstart.layers.norm import RMSNorm
from hotstart.layers.rotary import RotaryTable

__all__ = ["DecoderLayer", "Qwen35"]


class DecoderLayer(Layer):
    """A mixer of tokens, then a feed-forward.  Each adds to the residual, in place, what it makes of its norm."""

    def __init__(self, config: ModelConfig, index: int, rotary: RotaryTable, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(D, eps, ops, dtype)
        self.post_attention_layernorm = RMSNorm(D, eps, ops, dtype)
        self.has_attention = config.layer_types[index] == "full_attention"
        if self.has_attention:
            self.self_attn = GatedAttention(config, index, rotary, ops, dtype)
        else:
            self.linear_attn = GatedDeltaNet(config, index, ops, dtype)
        if config.moe_layers[index]:
            self.mlp: SparseMoE | MLP = SparseMoE(config, ops, dtype)
        else:
            self.mlp = MLP(D, config.intermediate_size, ops, dtype)

    def forward(self, residual: Tensor, step: StepInputs, cache: CacheTensors) -> Tensor:  # [T, D], in place
        residual = self.mixer(residual, self.input_layernorm, step, cache)
        return self.mlp(residual, self.post_attention_layernorm, step)

    def ends(self, residual: Tensor, step: StepInputs, cache: CacheTensors) -> Tensor:  # [T, D] -> [E, D]
        """The same for the spans' last tokens alone: all that nobody else reads is left out."""
        residual = self.mixer.ends(residual, self.input_layernorm, step, cache)
        return self.mlp(residual, self.post_attention_layernorm, step.ends)

    @property
    def mixer(self) -> GatedAttention | GatedDeltaNet:
        return self.self_attn if self.has_attention else self.linear_attn


class Qwen35(Layer):
    """Parameters carry the checkpoint's names, less the prefix `model.` or `model.language_model.`."""

    def __init__(
        self, config: ModelConfig, ops: Ops, dtype: torch.dtype, state_dtype: torch.dtype, num_positions: int
    ) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.dtype = dtype
        self.state_dtype = state_dtype
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype)
        rotary = RotaryTable(config.rope, num_positions)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index, rotary, ops, dtype) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops, dtype)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, ops, dtype)

    def forward(self, step: StepInputs, cache: CacheTensors) -> Tensor:
        """Hidden states after the last norm, [T, D], or [E, D] of the ends if those are all that is wanted.  Keys,
        values and states are written to the cache."""
        residual = self.embed_tokens(step.token_ids)
        *layers, last = cast("Iterable[DecoderLayer]", self.layers)
        for layer in layers:
            residual = layer(residual, step, cache)
        return self.norm((last.ends if step.ends_alone else last)(residual, step, cache))

    def logits(self, hidden: Tensor) -> Tensor:  # [R, D] -> [R, vocab]
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return self.ops.linear(hidden, head.weight)

    def one_of_each_kind(self) -> "Qwen35":
        """The same model without the layers whose like comes before them: it launches whatever the whole launches."""
        kinds = {(layer.has_attention, type(layer.mlp)): layer for layer in reversed(self.layers)}
        small = copy.copy(self)
        small._modules = dict(self._modules)
        small.layers = nn.ModuleList(reversed(kinds.values()))
        return small

    def layout(self, page_size: int) -> CacheLayout:
        dtypes = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.state_dtype))
        return cache_layout(self.config, page_size, *dtypes)
