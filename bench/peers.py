"""hotstart, transformers and vLLM on the same shapes in the same run, each in a process of its own.

python -m bench.peers [--model qwen3.5-4b] [--engines hotstart,transformers,vllm] [--out FILE]

Random weights in bfloat16, one request at a time, greedy.  An engine that is not installed is told and left out.
transformers is asked with bare forward calls, as fast as it can be called, and uses flash-linear-attention where it is
installed; vLLM and hotstart through their offline API.  The first call of each length is kept apart: it may compile.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bench.measure import RESULTS, seconds
from bench.shapes import SHAPES, write_folder

LENGTHS = (1024, 64, 8192)
NUM_SAMPLES = 4
NUM_TOKENS = 64
PACKAGES = ("hotstart", "torch", "triton", "transformers", "flash-linear-attention", "causal-conv1d", "vllm")
ENGINES = {"hotstart": "hotstart", "transformers": "transformers", "vllm": "vllm"}  # the module of each
MAX_MODEL_LEN = 9216


class Peer(Protocol):
    def first_token(self, prompt: list[int]) -> None: ...
    def answer(self, prompt: list[int], num_tokens: int) -> None: ...


class Hotstart:
    def __init__(self, folder: str) -> None:
        from hotstart import LLM

        self.llm: Any = LLM(
            folder,
            device="cuda",
            dtype="bfloat16",
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=MAX_MODEL_LEN,
            use_tqdm=False,
        )

    def first_token(self, prompt: list[int]) -> None:
        self.answer(prompt, 1)

    def answer(self, prompt: list[int], num_tokens: int) -> None:
        from hotstart import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        self.llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)


class Vllm:
    def __init__(self, folder: str) -> None:
        from vllm import LLM  # type: ignore[import-not-found]  # not installed where types are checked

        self.llm: Any = LLM(
            model=folder,
            dtype="bfloat16",
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=8192,
            enable_prefix_caching=False,
        )

    def first_token(self, prompt: list[int]) -> None:
        self.answer(prompt, 1)

    def answer(self, prompt: list[int], num_tokens: int) -> None:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        self.llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)


class Transformers:
    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_default_device("cuda")
        config = AutoConfig.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    def first_token(self, prompt: list[int]) -> None:
        self.answer(prompt, 1)

    def answer(self, prompt: list[int], num_tokens: int) -> None:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            for _ in range(num_tokens):
                output = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids = output.logits[:, -1:].argmax(-1)
        ids.item()


OPEN: dict[str, Callable[[str], Peer]] = {"hotstart": Hotstart, "transformers": Transformers, "vllm": Vllm}


def measure(name: str, folder: str, out: Path) -> None:
    dice, start = random.Random(1), time.perf_counter()
    peer = OPEN[name](folder)
    found: dict[str, Any] = {"engine": name, "start_s": time.perf_counter() - start, "versions": _versions()}
    vocab = json.loads(Path(folder, "config.json").read_text())["vocab_size"]

    def prompt(length: int) -> list[int]:
        return dice.choices(range(vocab), k=length)

    def ms(call: Callable[[], None]) -> float:
        return 1e3 * seconds(call)

    def token_ms() -> float:
        short, long = prompt(64), prompt(64)
        return (ms(lambda: peer.answer(long, 1 + NUM_TOKENS)) - ms(lambda: peer.first_token(short))) / NUM_TOKENS

    samples: dict[str, list[float]] = {}
    for length in LENGTHS:
        samples[str(length)] = [ms(lambda n=length: peer.first_token(prompt(n))) for _ in range(1 + NUM_SAMPLES)]  # type: ignore[misc]  # a default of a lambda
        found["ttft_samples_ms"] = samples
        found["ttft_ms"] = {key: statistics.median(times[1:]) for key, times in samples.items()}
        out.write_text(json.dumps(found, indent=1) + "\n")
    found["token_samples_ms"] = [token_ms() for _ in range(3)]
    found["token_ms"] = statistics.median(found["token_samples_ms"][1:])
    out.write_text(json.dumps(found, indent=1) + "\n")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="qwen3.5-4b")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--out", type=Path, default=RESULTS / "table" / "peers.json")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each engine")
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return measure(*arguments.one, arguments.out)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(arguments.model, Path(temporary))
        for name in arguments.engines.split(","):
            if importlib.util.find_spec(ENGINES[name]) is None:
                print(f"{name} is not installed here, and is left out; pip install {name}", flush=True)
                continue
            out = Path(temporary, f"{name}.json")
            command = [sys.executable, "-m", "bench.peers", "--one", name, str(folder), "--out", str(out)]
            try:
                code = subprocess.run(command, check=False, timeout=arguments.limit).returncode
            except subprocess.TimeoutExpired:
                code = None  # what it had measured by then is told
                print(f"{name} was cut off after {arguments.limit:.0f} s", flush=True)
            rows.append(json.loads(out.read_text()) if out.exists() else {"engine": name, "failed_with_code": code})
            record = {"command": f"python -m bench.peers --model {arguments.model}", "model": arguments.model}
            arguments.out.write_text(
                json.dumps({**record, "date": time.strftime("%Y-%m-%d"), "rows": rows}, indent=1) + "\n"
            )
    return None


if __name__ == "__main__":
    main()
