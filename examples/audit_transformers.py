"""A program that is not ours, to be audited: a small Qwen3.5 of transformers, which uses flash-linear-attention.

pip install transformers flash-linear-attention einops
hotstart audit --ready ready examples/audit_transformers.py           # serves as soon as it is loaded
hotstart audit --ready ready examples/audit_transformers.py --warm    # answers one prompt before it says so
"""

import sys
import time

import torch
import triton
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

LENGTHS = (1024, 200, 1024)


def make_model(device: torch.device) -> Qwen3_5ForCausalLM:
    """Heads of Qwen3.5-4B, four layers, random weights."""
    config = Qwen3_5TextConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=256,
        linear_num_key_heads=16,
        linear_num_value_heads=32,
    )
    return Qwen3_5ForCausalLM(config).to(device, torch.bfloat16).eval()


def answer(model: Qwen3_5ForCausalLM, length: int) -> None:
    start = time.perf_counter()
    ids = torch.arange(length, device=model.device)[None]
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    tokens.tolist()  # waits for the device
    print(f"{length} tokens answered in {1e3 * (time.perf_counter() - start):.0f} ms", flush=True)


if __name__ == "__main__":
    model = make_model(triton.runtime.driver.active.get_active_torch_device())
    if "--warm" in sys.argv:
        answer(model, max(LENGTHS))
    print("ready", flush=True)
    for length in LENGTHS:
        answer(model, length)
