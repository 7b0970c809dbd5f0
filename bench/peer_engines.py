"""The engines of bench/peers.py behind one question, and what is asked of them; each lives in a process of its own."""

import ctypes
import importlib.metadata
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

__all__ = ["ENGINES", "NUM_TOKENS", "TASKS", "Side", "Task", "work"]

NUM_TOKENS = 32  # of an answer after its first
NUM_LATER = 5
LATER_S = 3.0  # of one task: who is slow is asked less often
MAX_MODEL_LEN = 2048
MAX_STEP_TOKENS = 8192
CACHE_BYTES = 16 << 30  # said and not measured, as other engines share the GPU
PACKAGES = ("hotstart", "torch", "triton", "transformers", "flash-linear-attention", "causal-conv1d", "vllm")

CACHES = ("TRITON_CACHE_DIR", "XDG_CACHE_HOME", "HOTSTART_CACHE", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR")
_PR_SET_PDEATHSIG = 1

Job = tuple[list[int], int]  # a prompt, and how many tokens are to follow


@dataclass(frozen=True, slots=True)
class Task:
    """Requests that come at once: tokens in and out of each.  Every call has prompts of its own."""

    name: str
    sizes: tuple[tuple[int, int], ...]


def _mixed(count: int) -> tuple[tuple[int, int], ...]:
    dice = random.Random(count)
    return tuple((dice.randint(64, 1024), dice.randint(8, 32)) for _ in range(count))


TASKS = (
    Task("first_token", ((1024, 1),)),
    Task("answer", ((1024, 1 + NUM_TOKENS),)),
    Task("crowd", _mixed(16)),
)


class Peer(Protocol):
    def answer(self, jobs: Sequence[Job]) -> None:
        """All of them, greedily, in random weights; returns when the last token is known."""


class _Offline:
    """vLLM's offline API, which is ours too."""

    def __init__(self, llm: Any, params: Callable[[int], Any]) -> None:
        self._llm = llm
        self._params = params

    def answer(self, jobs: Sequence[Job]) -> None:
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in jobs]
        results = self._llm.generate(prompts, [self._params(count) for _, count in jobs], use_tqdm=False)
        counts = [len(result.outputs[0].token_ids) for result in results]
        assert counts == [count for _, count in jobs], f"asked for {[n for _, n in jobs]} tokens, got {counts}"


def open_hotstart(folder: Path, device: str) -> Peer:
    from hotstart import LLM, SamplingParams

    llm = LLM(
        folder,
        device=device,
        dtype="bfloat16" if device == "cuda" else "float32",
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=MAX_MODEL_LEN if device == "cuda" else 256,
        kv_cache_memory_bytes=CACHE_BYTES if device == "cuda" else None,
        enable_prefix_caching=False,
        jit_monitor_mode="error",
        use_tqdm=False,
    )
    return _Offline(llm, lambda count: SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))


def open_vllm(folder: Path, device: str) -> Peer:
    """On the device that vLLM chooses.  Of Qwen3.5 it knows the whole model, so it gets a config of both parts."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # not installed where types are checked

    llm = LLM(
        model=str(_with_vision(folder)),
        dtype="bfloat16",
        load_format="dummy",
        skip_tokenizer_init=True,
        language_model_only=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=256,
        max_num_batched_tokens=MAX_STEP_TOKENS,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.5,  # must be free when it starts; it takes what the next line says
        kv_cache_memory_bytes=CACHE_BYTES,
    )
    return _Offline(
        llm, lambda count: SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
    )


def _with_vision(folder: Path) -> Path:
    """The folder of the same shape as published: text beside vision, of which nothing is built."""
    text = json.loads((folder / "config.json").read_text())
    if not text["model_type"].startswith("qwen3_5"):
        return folder
    sections = {"mrope_interleaved": True, "mrope_section": [11, 11, 10]}
    text |= {"rope_parameters": text["rope_parameters"] | sections}
    config = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        "text_config": text,
        "vision_config": {"model_type": "qwen3_5", "out_hidden_size": text["hidden_size"]},
    }
    whole = Path(tempfile.mkdtemp(), folder.name)
    whole.mkdir()
    (whole / "config.json").write_text(json.dumps(config))
    return whole


class Transformers:
    """A request alone is bare forward calls, without the cost of `generate` around them; several are one static batch
    of `generate`, padded to the longest prompt and run until the longest answer is done."""

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_default_device(device)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype).eval()

    def answer(self, jobs: Sequence[Job]) -> None:
        import torch

        with torch.inference_mode():
            if len(jobs) == 1:
                self._one(*jobs[0])
            else:
                self._batch(jobs)

    def _one(self, prompt: list[int], num_tokens: int) -> None:
        import torch
        from transformers import DynamicCache

        cache, ids = DynamicCache(config=self.model.config), torch.tensor([prompt])
        for _ in range(num_tokens):
            output = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = output.logits[:, -1:].argmax(-1)
        ids.item()

    def _batch(self, jobs: Sequence[Job]) -> None:
        import torch

        width, longest = max(len(prompt) for prompt, _ in jobs), max(count for _, count in jobs)
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in jobs])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in jobs])
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        found = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=longest, **options)
        assert found.tolist() and found.shape[1] == width + longest, f"{found.shape} for {width} + {longest}"


def open_transformers(folder: Path, device: str) -> Peer:
    """Without flash-linear-attention, whether it is installed or not."""
    sys.modules["fla"] = None  # type: ignore[assignment]  # Python's own way to say that a module is not there
    return Transformers(folder, device)


@dataclass(frozen=True, slots=True)
class Side:
    """warms_up: a start makes it ready.  One that does not has its first requests while others still start."""

    name: str
    needs: tuple[str, ...]  # modules
    open: Callable[[Path, str], Peer]
    warms_up: bool


ENGINES = {
    "hotstart": Side("hotstart", ("hotstart", "torch"), open_hotstart, True),
    "vllm": Side("vLLM", ("vllm",), open_vllm, True),
    "transformers": Side("transformers", ("transformers", "torch"), open_transformers, False),
    "transformers-fla": Side(
        "transformers with flash-linear-attention", ("transformers", "torch", "fla"), Transformers, False
    ),
}


def work(engine: str, folder: Path, device: str, tasks: Sequence[Task], caches: Path, pipe: Connection) -> None:
    """The life of a side's process: it starts, waits until it is alone, is asked, and tells each figure at once.

    Moments are of a clock that all processes share.  Caches of compiled kernels are empty, and what it prints goes to a
    file beside them.
    """
    os.setsid()  # whatever it starts can be stopped and ended with it
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(caches / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update({name: str(caches / name.lower()) for name in CACHES})
    side, dice = ENGINES[engine], random.Random(1)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    peer = side.open(folder, device)

    def call(task: Task) -> tuple[float, float]:
        jobs = [(dice.choices(range(vocab), k=length), count) for length, count in task.sizes]
        start = time.perf_counter()
        peer.answer(jobs)
        return start, time.perf_counter()

    pipe.send(("ready", time.perf_counter(), {"versions": _versions(engine), "device": _device(device)}))
    if not side.warms_up:
        for task in tasks:
            pipe.send(("first", task.name, call(task)))
    pipe.send(("waits",))
    pipe.recv()
    for task in tasks:
        if side.warms_up:
            pipe.send(("first", task.name, call(task)))
        times: list[float] = []
        while not times or (len(times) < NUM_LATER and sum(times) < LATER_S):
            start, end = call(task)
            times.append(end - start)
        pipe.send(("later", task.name, times))
    pipe.send(("done",))


def _versions(engine: str) -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if sys.modules.get("fla", found) is None:
        found.pop("flash-linear-attention", None)
    if engine == "hotstart":
        from hotstart.bench.record import commit

        found["hotstart"] = " at ".join(filter(None, (found.get("hotstart"), commit())))
    else:
        found.pop("hotstart", None)
    return found


def _device(device: str) -> str:
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and device == "cuda" else device
