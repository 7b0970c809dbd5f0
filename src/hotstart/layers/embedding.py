"""Embedding: the rows of a table by token id."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hotstart.layers.linear import Layer, meta_parameter

__all__ = ["Embedding"]


class Embedding(Layer):
    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = meta_parameter(vocab_size, hidden_size, dtype=dtype)

    def forward(self, token_ids: Tensor) -> Tensor:  # [T] -> [T, D]
        return F.embedding(token_ids, self.weight)
