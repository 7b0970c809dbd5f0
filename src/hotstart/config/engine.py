"""EngineConfig: the wishes of the user.

Field names are vLLM's.  Each field carries its help text, and from here alone the command line's flags, the keywords of
`LLM(...)` and the messages of errors are derived.  None means "the engine decides, and says what it decided".
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hotstart.errors import ConfigError

__all__ = ["EngineConfig", "Option", "flag", "options", "parse_bytes", "parse_count"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_count(value: object) -> int:
    """A number of tokens or sequences: 4096, "4096", "4k" (4000), "4K" (4096), as vLLM reads them."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", str(value).strip())
    if isinstance(value, bool) or match is None:
        raise ConfigError(f"{value!r} is not a number of things; write 4096, 4k (4000) or 4K (4096)")
    return _whole(value, float(match[1]) * _UNITS[match[2]])


def parse_bytes(value: object) -> int:
    """A number of bytes: 1073741824, "1GiB" (2**30), "1GB" (10**9), "1G" (2**30), "512MiB"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?B)?", str(value).strip())
    if isinstance(value, bool) or match is None:
        raise ConfigError(f"{value!r} is not a size; write 4GiB, 4GB, 512MiB or a number of bytes")
    unit = match[2].upper()
    return _whole(value, float(match[1]) * _UNITS[unit.lower() if match[3] == "B" else unit])


def _whole(value: object, number: float) -> int:
    if number != int(number):
        raise ConfigError(f"{value!r} is not a whole number")
    return int(number)


@dataclass(frozen=True, slots=True)
class Option:
    """One field as a command line sees it."""

    name: str
    flag: str
    help: str
    default: object
    choices: tuple[str, ...] = ()
    parse: Callable[[str], object] = str
    metavar: str | None = None


def _option(
    help: str,
    default: Any = None,
    *,
    choices: tuple[str, ...] = (),
    parse: Callable[[str], object] = str,
    metavar: str | None = None,
    minimum: int | None = None,
) -> Any:
    metadata = {"help": help, "choices": choices, "parse": parse, "metavar": metavar, "minimum": minimum}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def _count(help: str, default: int | None = None, minimum: int = 1) -> Any:
    return _option(help, default, parse=parse_count, metavar="N", minimum=minimum)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Raises ConfigError for a value that no machine could honour; sizes may be given as text ("4GiB", "8K")."""

    model: str = _option("folder of a checkpoint in Hugging Face's layout", dataclasses.MISSING)
    tokenizer: str | None = _option("folder of the tokenizer; default: the model's", metavar="PATH")
    device: Literal["auto", "cpu", "cuda"] = _option(
        "where the model runs; auto takes a GPU if there is one", "auto", choices=("auto", "cpu", "cuda")
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "of weights and activations; auto is the checkpoint's",
        "auto",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    load_format: Literal["auto", "safetensors", "dummy"] = _option(
        "dummy fills the weights at random from the config alone", "auto", choices=("auto", "safetensors", "dummy")
    )
    max_model_len: int | None = _count(
        "longest sequence, prompt and answer together; default: min(the model's, 4096) or what fits"
    )
    max_num_seqs: int | None = _count("sequences that run at the same time; default: 16 or what fits")
    max_num_batched_tokens: int | None = _count("tokens of one step; default: 512 or what fits")
    block_size: int = _count("tokens of one page of the KV cache", 16)
    cpu_memory: int | None = _option(
        "bytes that the process may take on a CPU, such as 4GiB; default: half of the machine's memory",
        parse=parse_bytes,
        metavar="SIZE",
        minimum=1,
    )
    mamba_ssm_cache_dtype: Literal["auto", "float32", "bfloat16"] = _option(
        "of the recurrent states; auto is the checkpoint's mamba_ssm_dtype, float32 if it has none",
        "auto",
        choices=("auto", "float32", "bfloat16"),
    )
    kernel_backend: Literal["auto", "torch", "triton"] = _option(
        "which kernels the layers call; auto: torch on a CPU, triton on a GPU",
        "auto",
        choices=("auto", "torch", "triton"),
    )
    gdn_prefill_backend: Literal["auto", "triton", "flashinfer", "fla", "torch"] = _option(
        "whose chunked delta rule runs the prompts; auto: the fastest that was measured on this GPU and is installed",
        "auto",
        choices=("auto", "triton", "flashinfer", "fla", "torch"),
    )
    tune: Literal["auto", "off", "force"] = _option(
        "tiles of kernels that no table has for this GPU: time them once at start-up, never, or all of them anew",
        "auto",
        choices=("auto", "off", "force"),
    )
    jit_monitor_mode: Literal["warn", "error"] = _option(
        "a compile, tuning run, load or growth after the seal: warn, or fail the requests of its step",
        "warn",
        choices=("warn", "error"),
    )
    seed: int = _count("from which requests without a seed of their own draw one", 0, minimum=0)
    num_threads: int | None = _count("threads of torch on a CPU; default: torch's own choice")

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty; name the folder of a checkpoint")
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            choices, parse, minimum = (item.metadata[key] for key in ("choices", "parse", "minimum"))
            if choices and value not in choices:
                raise ConfigError(f"{flag(item.name)} is {value!r}, it must be one of {', '.join(choices)}")
            if parse is not str and value is not None:
                try:
                    number = parse(value)
                except ConfigError as error:
                    raise ConfigError(f"{flag(item.name)}: {error}") from None
                if number < minimum:
                    raise ConfigError(f"{flag(item.name)} is {number}, it must be at least {minimum}")
                object.__setattr__(self, item.name, number)


def flag(name: str) -> str:
    """The command-line flag of a field, as messages name it."""
    return "--" + name.replace("_", "-")


def options() -> Iterator[Option]:
    """Every field but `model`, which a command takes as its argument."""
    for item in dataclasses.fields(EngineConfig):
        if item.name != "model":
            metadata = item.metadata
            yield Option(
                name=item.name,
                flag=flag(item.name),
                help=metadata["help"],
                default=item.default,
                choices=metadata["choices"],
                parse=metadata["parse"],
                metavar=metadata["metavar"],
            )
