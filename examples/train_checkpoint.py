"""Train the shipped checkpoint: a small Qwen3.5 that recalls, copies, sorts and adds, in minutes on one GPU.

    python examples/make_tokenizer.py checkpoints/tiny-qwen3.5
    python examples/train_checkpoint.py checkpoints/tiny-qwen3.5 --minutes 6 --device cuda

The model is transformers' own `Qwen3_5ForCausalLM`; rows are packed conversations of one user turn and its reply each.
The loss counts the replies, and what users say only lightly.  Held-out prompts are never trained on.  The weights are
rounded to bfloat16, as published ones are (`A_log` and the gated norm stay float32), and every figure printed as
`held-out` is teacher-forced: a reply counts if each of its tokens is the likeliest one, which is what greedy
decoding would have said.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tasks import MAX_SIZE, TASKS, Example, chat_text, draw, is_held_out, make_example
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

SEED = 20251122
ROW = 192  # tokens of a packed row; the longest example has 176
PROMPT_WEIGHT = 0.05
CURRICULUM = 0.25  # the share of the run after which sizes are drawn up to their maximum
KEPT_IN_FLOAT32 = ("linear_attn.A_log", "linear_attn.norm.weight")  # as in the published Qwen3.5 files


def model_config() -> Qwen3_5TextConfig:
    return Qwen3_5TextConfig(
        architectures=["Qwen3_5ForCausalLM"],
        vocab_size=448,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        full_attention_interval=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=64,
        linear_conv_kernel_dim=4,
        max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
        tie_word_embeddings=True,
        initializer_range=0.06,
        mamba_ssm_dtype="float32",
        pad_token_id=397,
        eos_token_id=397,
        dtype="bfloat16",
    )


class Rows(IterableDataset):
    """Endless batches of packed conversations: token ids [B, ROW + 1] and the weight of each as a target."""

    def __init__(self, tokenizer_file: str, rows: int, curriculum_batches: int, num_workers: int) -> None:
        self.tokenizer_file, self.rows = tokenizer_file, rows
        self.curriculum_batches, self.num_workers = curriculum_batches, max(num_workers, 1)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = torch.utils.data.get_worker_info()
        worker_id = info.id if info else 0
        rng = random.Random(SEED + 1 + worker_id)
        tokenizer = Tokenizer.from_file(self.tokenizer_file)
        pool: deque[tuple[list[int], int]] = deque()
        for num_batches in itertools.count():
            progress = num_batches * self.num_workers / max(self.curriculum_batches, 1)
            yield self._batch(tokenizer, rng, min(1.0, 0.2 + 0.8 * progress), pool)

    def _batch(
        self, tokenizer: Tokenizer, rng: random.Random, share: float, pool: deque[tuple[list[int], int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fill each row from the pool; what does not fit goes to the pool's end, for a later row."""
        tokens = np.full((self.rows, ROW + 1), 397, dtype=np.int64)
        weights = np.zeros((self.rows, ROW + 1), dtype=np.float32)
        for row in range(self.rows):
            filled = 0
            for _ in range(10):
                if not pool:
                    pool.extend(encode(tokenizer, [self._example(rng, share) for _ in range(512)]))
                ids, reply_start = pool.popleft()
                end = filled + len(ids)
                if end > ROW + 1:
                    pool.append((ids, reply_start))
                    continue
                tokens[row, filled:end] = ids
                weights[row, filled:end] = PROMPT_WEIGHT
                weights[row, filled + reply_start : end] = 1.0
                filled = end
        return torch.from_numpy(tokens), torch.from_numpy(weights)

    @staticmethod
    def _example(rng: random.Random, share: float) -> Example:
        task = rng.choice(TASKS)
        while True:
            example = make_example(task, rng.randint(1, math.ceil(share * MAX_SIZE[task])), rng)
            if not is_held_out(example):
                return example


def encode(tokenizer: Tokenizer, examples: list[Example]) -> list[tuple[list[int], int]]:
    """Token ids of each conversation, and where its reply starts in them."""
    prompts = tokenizer.encode_batch([chat_text(e.prompt) for e in examples])
    replies = tokenizer.encode_batch([f"{e.answer}<|im_end|>\n" for e in examples])
    return [(prompt.ids + reply.ids, len(prompt.ids)) for prompt, reply in zip(prompts, replies, strict=True)]


def new_model(config: Qwen3_5TextConfig) -> Qwen3_5ForCausalLM:
    torch.manual_seed(SEED)
    model = Qwen3_5ForCausalLM(config)
    with torch.no_grad():  # decays from slow to fast; transformers' own start forgets within a few tokens
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                dt = torch.exp(torch.empty_like(parameter).uniform_(math.log(1e-3), math.log(1e-1)))
                parameter.copy_(dt + torch.log(-torch.expm1(-dt)))
    return model


def new_optimizer(model: Qwen3_5ForCausalLM, device: str) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    on_gpu = device == "cuda"
    lr = torch.tensor(0.0, device=device)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), capturable=on_gpu, fused=on_gpu)


def forward(model: Qwen3_5ForCausalLM, tokens: torch.Tensor, chunk_size: int) -> torch.Tensor:
    no_masks = {"full_attention": None, "linear_attention": None}  # causal; making masks would read from the device
    return model(input_ids=tokens, attention_mask=no_masks, use_cache=False, chunk_size=chunk_size).logits


class Trainer:
    """One optimiser step on static buffers; on a GPU it is captured once and replayed."""

    def __init__(self, model: Qwen3_5ForCausalLM, rows: int, chunk_size: int, device: str, graph: bool) -> None:
        self.model, self.chunk_size = model, chunk_size
        self.optimizer = new_optimizer(model, device)
        self.tokens = torch.full((rows, ROW + 1), 397, device=device)
        self.weights = torch.ones(rows, ROW + 1, device=device)
        self.loss = torch.zeros((), device=device)
        self.graph = self._capture() if graph else None

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        logits = forward(self.model, self.tokens[:, :-1], self.chunk_size)
        weights = self.weights[:, 1:].reshape(-1)
        losses = cross_entropy(logits.flatten(0, 1).float(), self.tokens[:, 1:].reshape(-1), reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()  # the learning rate is 0 here: these steps move no weight
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph

    def step(self, tokens: torch.Tensor, weights: torch.Tensor, lr: float) -> None:
        self.tokens.copy_(tokens, non_blocking=True)
        self.weights.copy_(weights, non_blocking=True)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()


@torch.no_grad()
def held_out_score(model: Qwen3_5ForCausalLM, tokenizer: Tokenizer, num_examples: int, device: str) -> dict[str, float]:
    examples = draw(num_examples, SEED)
    encoded = encode(tokenizer, examples)
    tokens = torch.full((num_examples, ROW), 397)
    replied = torch.zeros(num_examples, ROW, dtype=torch.bool)
    for row, (ids, reply_start) in enumerate(encoded):
        tokens[row, : len(ids)] = torch.tensor(ids)
        replied[row, reply_start : len(ids) - 1] = True  # up to <|im_end|>, without the line end after it
    predicted = forward(model, tokens.to(device), 64)[:, :-1].argmax(-1).cpu()
    right = ((predicted == tokens[:, 1:]) | ~replied[:, 1:]).all(dim=1).tolist()
    by_task = {t: [ok for e, ok in zip(examples, right, strict=True) if e.task == t] for t in TASKS}
    return {task: sum(found) / len(found) for task, found in by_task.items()}


def save(model: Qwen3_5ForCausalLM, folder: Path, record: dict[str, object]) -> None:
    """Write config and weights in the published layout.  The output layer is tied and not stored."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            dtype = torch.float32 if name.endswith(KEPT_IN_FLOAT32) else torch.bfloat16
            tensors[name] = tensor.detach().to("cpu", dtype).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    generation = {"do_sample": False, "eos_token_id": [399, 397], "pad_token_id": 397}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds tokenizer.json")
    parser.add_argument("--out", type=Path, help="where the weights go, if not into the folder")
    parser.add_argument("--minutes", type=float, default=6.0, help="training stops then, the learning rate at zero")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--chunk", type=int, default=64, help="chunk length of the delta rule while training")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="no CUDA graph")
    arguments = parser.parse_args()
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    device, out = arguments.device, arguments.out or arguments.folder
    torch.set_float32_matmul_precision("high")
    tokenizer_file = str(arguments.folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(tokenizer_file)
    model = new_model(model_config()).to(device)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters / 1e6:.2f} M parameters", flush=True)
    trainer = Trainer(model, arguments.rows, arguments.chunk, device, graph=device == "cuda" and not arguments.eager)
    print(f"ready after {time.monotonic() - started:.0f} s", flush=True)
    rows = Rows(tokenizer_file, arguments.rows, int(CURRICULUM * 60 * arguments.minutes / 0.03), arguments.workers)
    loader = DataLoader(
        rows, batch_size=None, num_workers=arguments.workers, prefetch_factor=8 if arguments.workers else None
    )

    clock, budget, step, reports = time.monotonic(), 60 * arguments.minutes, 0, 0
    for tokens, weights in loader:
        share = (time.monotonic() - clock) / budget
        if share >= 1:
            break
        lr = arguments.lr * min(1.0, (step + 1) / 300) * min(1.0, 1.6 * (1 - share))
        trainer.step(tokens, weights, lr)
        step += 1
        if step in (20, 200) or share * 20 >= reports + 1:
            reports = int(share * 20)
            scores = held_out_score(model, tokenizer, 400, device)
            line = "  ".join(f"{task} {value:.3f}" for task, value in scores.items())
            seconds = time.monotonic() - clock
            print(f"{seconds:5.0f} s  step {step:6d}  loss {trainer.loss.item():.4f}  held-out  {line}", flush=True)
            save(model, out, {"steps": step, "held_out": scores})

    for name, parameter in model.named_parameters():
        if not name.endswith(KEPT_IN_FLOAT32):
            parameter.data.copy_(parameter.data.bfloat16())
    record = {
        "seed": SEED,
        "command": f"python examples/train_checkpoint.py FOLDER --minutes {arguments.minutes:g} --rows {arguments.rows}"
        f" --lr {arguments.lr:g} --workers {arguments.workers} --device {device}",
        "parameters": num_parameters,
        "steps": step,
        "tokens": step * arguments.rows * ROW,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "held_out_teacher_forced": held_out_score(model, tokenizer, 2000, device),
    }
    save(model, out, record)
    print(json.dumps(record, indent=2), flush=True)


if __name__ == "__main__":
    main()
