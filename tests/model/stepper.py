"""Stepper: a model, its caches and a few sequences, advanced step by step without an engine."""

from dataclasses import replace
from pathlib import Path

import torch
from steps import Row, make_step
from torch import Tensor

from hotstart.cache.step import StepInputs
from hotstart.cache.tensors import CacheTensors
from hotstart.config.model import read_model_config
from hotstart.kernels.backends import ops_for
from hotstart.models import build_model
from hotstart.models.qwen3_5 import Qwen35
from hotstart.models.weights import load_weights

__all__ = ["Stepper", "allocate", "load_model"]

PAGE_SIZE = 16
MAX_LENGTH = 320


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Poisoned: what is read before it is written shows."""
    return torch.full(shape, float("nan"), dtype=dtype)


def load_model(folder: Path, dtype: torch.dtype, state_dtype: torch.dtype = torch.float32) -> Qwen35:
    model = build_model(read_model_config(folder), ops_for("torch"), dtype, state_dtype, MAX_LENGTH)
    load_weights(model, folder, allocate)
    return model


class Stepper:
    """Sequence i owns slot i and as many pages as the longest sequence needs."""

    def __init__(self, model: Qwen35, prompts: list[list[int]], chunk_length: int = 64) -> None:
        self.model = model
        self.tokens = [list(prompt) for prompt in prompts]
        self.chunk_length = chunk_length
        self.done = [0] * len(prompts)  # tokens computed
        self.pages_each = -(-MAX_LENGTH // PAGE_SIZE)
        num_pages = self.pages_each * len(prompts)
        self.cache = CacheTensors(model.layout(PAGE_SIZE), num_pages, len(prompts), allocate)

    def step(self, lengths: list[int]) -> list[Tensor]:
        """Advance sequence i by lengths[i] of its tokens (0: it rests); the logits of those, [lengths[i], vocab]."""
        order = sorted((i for i in range(len(lengths)) if lengths[i]), key=lambda i: lengths[i] > 1)
        rows = {i: self._row(i, lengths[i]) for i in order}
        padding = 3
        step = make_step(
            [rows[i] for i in order if lengths[i] == 1],
            [rows[i] for i in order if lengths[i] > 1],
            PAGE_SIZE,
            self.chunk_length,
            padding,
        )
        token_ids = [token for i in order for token in self.tokens[i][self.done[i] : self.done[i] + lengths[i]]]
        step = replace(step, token_ids=torch.tensor(token_ids + [0] * padding, dtype=torch.int32))
        logits = self.forward(step)[: step.num_tokens]
        parts = dict(zip(order, logits.split([lengths[i] for i in order]), strict=True))
        for i in order:
            self.done[i] += lengths[i]
        return [parts.get(i, logits[:0]) for i in range(len(lengths))]

    def forward(self, step: StepInputs) -> Tensor:
        return self.model.logits(self.model(step, self.cache))

    def _row(self, i: int, length: int) -> Row:
        pages = tuple(range(i, i + self.pages_each * len(self.tokens), len(self.tokens)))  # interleaved with others'
        read = i if self.done[i] else -1
        return Row(length, self.done[i], read, i, pages[: -(-(self.done[i] + length) // PAGE_SIZE)])
