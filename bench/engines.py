"""The two engines of a comparison behind the same three questions: a prompt's time, a token's time, a crowd's time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from bench.measure import seconds
from hotstart import LLM, SamplingParams

__all__ = ["Hotstart", "Job", "Transformers"]


@dataclass(frozen=True)
class Job:
    """One request of a mixed crowd: its prompt and how many tokens it wants."""

    prompt: tuple[int, ...]
    num_tokens: int


class Hotstart:
    """Through `LLM.generate`, as a user calls it: scheduling, sampling and results included."""

    name = "hotstart"

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def prefill(self, prompt: Sequence[int]) -> float:
        return seconds(lambda: self.serve([Job(tuple(prompt), 1)]))

    def decode(self, prompt: Sequence[int], num_tokens: int) -> float:
        """Time of one token after the first: a long answer less a short one."""
        short = seconds(lambda: self.serve([Job(tuple(prompt), 1)]))
        long = seconds(lambda: self.serve([Job(tuple(prompt), 1 + num_tokens)]))
        return (long - short) / num_tokens

    def serve(self, jobs: Sequence[Job]) -> list[list[int]]:
        prompts = [{"prompt_token_ids": list(job.prompt)} for job in jobs]
        params = [SamplingParams(temperature=0.0, max_tokens=job.num_tokens, ignore_eos=True) for job in jobs]
        results = self.llm.generate(prompts, params, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    def serve_time(self, jobs: Sequence[Job]) -> float:
        return seconds(lambda: self.serve(jobs))


class Transformers:
    """Its default CPU path.  Prompt and decode are bare forward calls, without the cost of `generate` around them."""

    name = "transformers"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()

    @classmethod
    def load(cls, folder: Path) -> "Transformers":
        return cls(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int]) -> float:
        ids = torch.tensor([list(prompt)])
        return seconds(lambda: self.model(ids, use_cache=True, logits_to_keep=1).logits.argmax().item())

    @torch.inference_mode()
    def decode(self, prompt: Sequence[int], num_tokens: int) -> float:
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([list(prompt)])
        output = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(num_tokens):
            token = output.logits[:, -1:].argmax(-1)
            output = self.model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return (time.perf_counter() - start) / num_tokens

    def serve_time(self, jobs: Sequence[Job], batch_size: int, sort_by: str) -> float:
        """Static batches of one size, left-padded; each runs until the last of its requests is done."""
        keys = {"prompt": lambda job: len(job.prompt), "answer": lambda job: job.num_tokens}
        ordered = sorted(jobs, key=keys[sort_by])
        start = time.perf_counter()
        for batch in _batched(ordered, batch_size):
            self._generate(batch)
        return time.perf_counter() - start

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Job]) -> None:
        width, num_tokens = max(len(job.prompt) for job in batch), max(job.num_tokens for job in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(batch):
            ids[row, width - len(job.prompt) :] = torch.tensor(job.prompt)
            mask[row, width - len(job.prompt) :] = 1
        self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )


def _batched(jobs: Sequence[Job], size: int) -> list[Sequence[Job]]:
    return [jobs[first : first + size] for first in range(0, len(jobs), size)]
