"""EngineConfig: the wishes of the user.

Field names are vLLM's.  None means "the engine decides, and says what it decided".
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hotstart.config.options import (
    Option,
    check_options,
    count,
    flag,
    option,
    options_of,
    parse_bytes,
    parse_count,
    parse_length,
    parse_share,
    parse_sizes,
    size,
    switch,
)
from hotstart.errors import ConfigError

__all__ = ["EngineConfig", "Option", "flag", "options", "parse_bytes", "parse_count"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Raises ConfigError for a value that no machine could honour; sizes may be given as text ("4GiB", "8K")."""

    model: str = option("folder of a checkpoint in Hugging Face's layout, or its name on the hub", dataclasses.MISSING)
    tokenizer: str | None = option("folder or hub name of the tokenizer; default: the model's", metavar="PATH")
    revision: str | None = option("branch, tag or commit of the model on the hub", metavar="NAME")
    download_dir: str | None = option("where to keep what the hub sends; default: the hub's cache", metavar="PATH")
    device: Literal["auto", "cpu", "cuda"] = option(
        "where the model runs; auto takes a GPU if there is one", "auto", choices=("auto", "cpu", "cuda")
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "of weights and activations; auto is the checkpoint's",
        "auto",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    load_format: Literal["auto", "safetensors", "dummy"] = option(
        "dummy fills the weights at random from the config alone", "auto", choices=("auto", "safetensors", "dummy")
    )
    max_model_len: int | Literal["auto"] | None = option(
        "longest sequence, prompt and answer together; auto: the model's own length or the longest that fits; "
        "default: min(the model's, 4096; 32768 on a GPU) or what fits",
        parse=parse_length,
        metavar="N",
        minimum=2,  # a token of the prompt, and one of the answer
    )
    max_num_seqs: int | None = count(
        "sequences that run at the same time; default: 16 (256 on a GPU), or what fits and leaves pages as much as "
        "states"
    )
    max_num_batched_tokens: int | None = count("tokens of one step; default: 1024 (8192 on a GPU) or what fits")
    block_size: int = count("tokens of one page of the KV cache", 16)
    cpu_memory: int | None = size(
        "bytes that the process may take on a CPU, such as 4GiB; default: half of the machine's memory"
    )
    gpu_memory_utilization: float | None = option(
        "part of the GPU's memory that may be in use, by us and by others; default: all of it but --reserve-bytes",
        parse=parse_share,
        metavar="SHARE",
    )
    device_memory_bytes: int | None = size("treat the GPU as one of this size, such as 32GiB; default: as it is")
    kv_cache_memory_bytes: int | None = size("bytes of cache pages and state slots; default: what is left")
    reserve_bytes: int | None = size(
        "bytes that nobody plans with; default: 256MiB on a GPU, 1GiB if it has a screen; on a CPU 1/32, up to 256MiB",
        0,
    )
    enable_prefix_caching: bool = switch("keep pages and states of prompts for later ones that begin like them")
    enforce_eager: bool = switch("capture no CUDA graphs: every step is launched kernel by kernel")
    cudagraph_capture_sizes: tuple[int, ...] | None = option(
        "tokens of a step, for which a CUDA graph is captured; default: up to --max-num-seqs, prompts up to 1024",
        parse=parse_sizes,
        metavar="N,N,...",
    )
    mamba_ssm_cache_dtype: Literal["auto", "float32", "bfloat16"] = option(
        "of the recurrent states; auto is the checkpoint's mamba_ssm_dtype, float32 if it has none",
        "auto",
        choices=("auto", "float32", "bfloat16"),
    )
    kernel_backend: Literal["auto", "torch", "triton"] = option(
        "which kernels the layers call; auto: torch on a CPU, triton on a GPU",
        "auto",
        choices=("auto", "torch", "triton"),
    )
    gdn_prefill_backend: Literal["auto", "triton", "flashinfer", "fla", "torch"] = option(
        "whose chunked delta rule runs the prompts; auto: the fastest that was measured on this GPU and is installed",
        "auto",
        choices=("auto", "triton", "flashinfer", "fla", "torch"),
    )
    gdn_chunk_length: Literal["auto", "16", "32", "64"] = option(
        "tokens of one chunk of the delta rule; auto: 64 on a GPU, 32 on a CPU",
        "auto",
        choices=("auto", "16", "32", "64"),
    )
    tune: Literal["auto", "off", "force"] = option(
        "tiles of kernels that no table has for this GPU: time them once at start-up, never, or all of them anew",
        "auto",
        choices=("auto", "off", "force"),
    )
    jit_monitor_mode: Literal["warn", "error"] = option(
        "a compile, tuning run, load or growth after the seal: warn, or fail the requests of its step",
        "warn",
        choices=("warn", "error"),
    )
    seed: int = count("from which requests without a seed of their own draw one", 0, minimum=0)
    unsafe_skip_warmup: bool = switch(
        "for demonstrations: size the caches by a forecast before any kernel has run, and leave compiling, tuning, "
        "loading and capturing to the requests; never serve with it"
    )
    num_threads: int | None = count("threads of torch on a CPU; default: torch's own choice")

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty; name the folder of a checkpoint")
        check_options(self)


def options() -> Iterator[Option]:
    """Every field but `model`, which a command takes as its argument."""
    return (found for found in options_of(EngineConfig) if found.name != "model")
