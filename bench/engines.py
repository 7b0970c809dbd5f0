"""The two engines of a comparison behind the same questions, each in a process of its own, as its users run it.

python -m bench.engines hotstart|transformers tiny|0.8b     one JSON question a line in, one answer a line out
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from bench.measure import seconds

__all__ = ["CHECKPOINT", "NUM_THREADS", "Engine", "EngineProcess", "Job", "open_engine"]

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "tiny-qwen3.5"
NUM_THREADS = 2
# Qwen3.5-0.8B, text part.
SHAPE_0_8B: dict[str, Any] = {
    "vocab_size": 248320,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "full_attention_interval": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}
MATRIX_PRODUCTS = (
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::mv", "aten::addmv"),
    "mkldnn::_linear_pointwise",
)
FUSED_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


@dataclass(frozen=True)
class Job:
    """One request: its prompt and how many tokens it wants."""

    prompt: list[int]
    num_tokens: int


class Engine(Protocol):
    """Each answer is in seconds."""

    def prefill(self, prompt: list[int]) -> float:
        """From a prompt to its first token."""

    def decode(self, prompt: list[int], num_tokens: int) -> float:
        """Of one token after the first."""

    def crowd(self, jobs: list[Job], way: dict[str, Any]) -> float:
        """Of all jobs."""


class Hotstart:
    """Through `LLM.generate`, as a user calls it: scheduling, sampling and results included."""

    def __init__(self, model: str) -> None:
        from hotstart import LLM

        options: dict[str, Any] = {"dtype": "float32", "max_model_len": 1024, "num_threads": NUM_THREADS}
        if model == "tiny":
            self.llm = LLM(CHECKPOINT, device="cpu", use_tqdm=False, **options)
            return
        with tempfile.TemporaryDirectory() as folder:
            config = {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", **SHAPE_0_8B}
            Path(folder, "config.json").write_text(json.dumps(config))
            options |= {"load_format": "dummy", "skip_tokenizer_init": True, "max_num_seqs": 4}
            self.llm = LLM(folder, device="cpu", use_tqdm=False, **options)

    def prefill(self, prompt: list[int]) -> float:
        return self.crowd([Job(prompt, 1)], {})

    def decode(self, prompt: list[int], num_tokens: int) -> float:
        short = self.crowd([Job(prompt, 1)], {})
        return (self.crowd([Job(prompt, 1 + num_tokens)], {}) - short) / num_tokens

    def crowd(self, jobs: list[Job], way: dict[str, Any]) -> float:
        from hotstart import SamplingParams

        prompts = [{"prompt_token_ids": job.prompt} for job in jobs]
        params = [SamplingParams(temperature=0.0, max_tokens=job.num_tokens, ignore_eos=True) for job in jobs]
        return seconds(lambda: self.llm.generate(prompts, params, use_tqdm=False))


class Transformers:
    """Its default CPU path.  Prompt and decode are bare forward calls, without the cost of `generate` around them."""

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(NUM_THREADS)
        if model == "tiny":
            self.model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
        else:
            self.model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SHAPE_0_8B)).float().eval()

    def prefill(self, prompt: list[int]) -> float:
        import torch

        ids = torch.tensor([prompt])
        with torch.inference_mode():
            return seconds(lambda: self.model(ids, use_cache=True, logits_to_keep=1).logits.argmax().item())

    def decode(self, prompt: list[int], num_tokens: int) -> float:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            output = self.model(torch.tensor([prompt]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            start = time.perf_counter()
            for _ in range(num_tokens):
                token = output.logits[:, -1:].argmax(-1)
                output = self.model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return (time.perf_counter() - start) / num_tokens

    def crowd(self, jobs: list[Job], way: dict[str, Any]) -> float:
        """Static batches of one size, left-padded; each runs until the last of its requests is done."""
        size: int = way["size"]
        ordered = sorted(
            jobs, key=(lambda j: len(j.prompt)) if way["sorted_by"] == "prompt" else (lambda j: j.num_tokens)
        )
        batches = [ordered[first : first + size] for first in range(0, len(ordered), size)]
        return seconds(lambda: [self._generate(batch) for batch in batches])

    def _generate(self, batch: Sequence[Job]) -> None:
        import torch

        width = max(len(job.prompt) for job in batch)
        ids = torch.tensor([[0] * (width - len(job.prompt)) + job.prompt for job in batch])
        mask = torch.tensor([[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in batch])
        with torch.inference_mode():
            self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(job.num_tokens for job in batch),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )


def open_engine(name: str, model: str) -> Engine:
    return {"hotstart": Hotstart, "transformers": Transformers}[name](model)


def outside_products(call: Callable[[], object]) -> float:
    """Seconds that operators spend outside matrix products; fused attention counts as products."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    outside = [e for e in profiled.key_averages() if e.key not in MATRIX_PRODUCTS and FUSED_ATTENTION not in e.key]
    return sum(e.self_cpu_time_total for e in outside) * 1e-6


class EngineProcess:
    """An engine in another process; it sleeps until it is asked."""

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "bench.engines", name, model]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def prefill(self, prompt: list[int], burst: int) -> float:
        return self._ask(question="prefill", prompt=prompt, burst=burst)

    def decode(self, prompt: list[int], num_tokens: int) -> float:
        return self._ask(question="decode", prompt=prompt, num_tokens=num_tokens)

    def crowd(self, jobs: list[Job], way: dict[str, Any]) -> float:
        return self._ask(question="crowd", jobs=[vars(job) for job in jobs], way=way)

    def outside_products(self, prompt: list[int]) -> float:
        return self._ask(question="outside", prompt=prompt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, **question: object) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with code {self._process.wait()}")
        return float(line)


def _answer(engine: Engine, question: dict[str, Any]) -> float:
    match question:
        case {"question": "prefill", "prompt": prompt, "burst": burst}:
            # The first run wakes threads and caches that the other process had.
            return statistics.median([engine.prefill(prompt) for _ in range(1 + burst)][burst > 0 :])
        case {"question": "decode", "prompt": prompt, "num_tokens": num_tokens}:
            return engine.decode(prompt, num_tokens)
        case {"question": "crowd", "jobs": jobs, "way": way}:
            return engine.crowd([Job(**job) for job in jobs], way)
        case {"question": "outside", "prompt": prompt}:
            return outside_products(lambda: engine.prefill(prompt))
    raise ValueError(f"no such question: {question}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("hotstart", "transformers"))
    parser.add_argument("model", choices=("tiny", "0.8b"))
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    with redirect_stdout(sys.stderr):  # whatever the libraries print
        engine = open_engine(arguments.engine, arguments.model)
        print(0.0, file=answers, flush=True)
        for line in sys.stdin:
            print(_answer(engine, json.loads(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
