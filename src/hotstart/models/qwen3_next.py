"""Qwen3-Next: the network of Qwen3.5 with experts, and the first of the family.

What differs is told by its config (`norm_topk_prob`, `mlp_only_layers`, `decoder_sparse_step`) and by its files:
`in_proj_qkvz` and `in_proj_ba` are interleaved by key head, which `GatedDeltaNet` undoes while loading.
"""

from hotstart.models.qwen3_5 import Qwen35

__all__ = ["Qwen3Next"]


class Qwen3Next(Qwen35):
    pass
