"""Command-line flags, derived from EngineConfig's fields."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotstart.config.engine import EngineConfig, Option, options
from hotstart.engine.download import download
from hotstart.errors import ConfigError

if TYPE_CHECKING:
    from hotstart.engine.phases import OnPhase

__all__ = [
    "ENGINE_GROUPS",
    "Commands",
    "add_engine_flags",
    "add_flags",
    "add_grouped_flags",
    "engine_config",
    "engine_options",
    "given_options",
    "local_config",
]

Commands = Any  # argparse names no public type for what add_subparsers returns


ENGINE_GROUPS = {
    "engine: checkpoint": ("tokenizer", "revision", "download_dir", "dtype", "load_format"),
    "engine: limits": (
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "block_size",
        "enable_prefix_caching",
    ),
    "engine: memory": (
        "cpu_memory",
        "gpu_memory_utilization",
        "device_memory_bytes",
        "kv_cache_memory_bytes",
        "reserve_bytes",
        "mamba_ssm_cache_dtype",
    ),
    "engine: kernels": (
        "kernel_backend",
        "gdn_prefill_backend",
        "gdn_chunk_length",
        "tune",
        "enforce_eager",
        "cudagraph_capture_sizes",
        "num_threads",
    ),
}
MODEL = "folder of a checkpoint in Hugging Face's layout, or its name on the hub, such as Qwen/Qwen3.5-4B"


def add_engine_flags(parser: argparse.ArgumentParser, about_model: str = MODEL) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help=about_model)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML with flags' names as keys; the command line and HOTSTART_... variables count more",
    )
    groups = add_grouped_flags(parser, "engine", options(), ENGINE_GROUPS)
    groups["engine"].add_argument(
        "--strict",
        dest="jit_monitor_mode",
        action="store_const",
        const="error",
        default=argparse.SUPPRESS,
        help="the same as --jit-monitor-mode error",
    )


def add_grouped_flags(
    parser: argparse.ArgumentParser, rest: str, found: Iterable[Option], groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """By title; options that no group names are in the first one, `rest`."""
    chosen = list(found)
    named = {name for names in groups.values() for name in names}
    made = {}
    for title, names in {rest: [option.name for option in chosen if option.name not in named], **groups}.items():
        made[title] = parser.add_argument_group(title)
        add_flags(made[title], (option for option in chosen if option.name in names))
    return made


def add_flags(group: Any, found: Iterable[Option]) -> None:
    """To a parser or a group of one."""
    for option in found:
        if option.is_switch:
            switch = argparse.BooleanOptionalAction
            group.add_argument(
                option.flag, dest=option.name, action=switch, default=argparse.SUPPRESS, help=option.help
            )
            continue
        words = " ".join(option.default) if isinstance(option.default, tuple) else option.default
        default = "" if words in (None, "") else f" (default: {words})"
        group.add_argument(
            option.flag,
            dest=option.name,
            default=argparse.SUPPRESS,
            choices=option.choices or None,
            nargs="+" if option.is_several else None,
            metavar=option.metavar,
            help=(option.help + default).replace("%", "%%"),
        )


def given_options(arguments: argparse.Namespace, found: Iterable[Option]) -> dict[str, Any]:
    """Those that the user set, as text, which the configuration reads."""
    return {option.name: getattr(arguments, option.name) for option in found if hasattr(arguments, option.name)}


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that the user set, as text, which EngineConfig reads."""
    if arguments.model is None:
        raise ConfigError("which model? give its folder or its name on the hub, before the flags")
    return {"model": arguments.model, **given_options(arguments, options())}


def engine_config(arguments: argparse.Namespace) -> EngineConfig:
    return EngineConfig(**engine_options(arguments))


def local_config(arguments: argparse.Namespace, on_phase: "OnPhase") -> EngineConfig:
    """The same, of a checkpoint that is here: a name on the hub is fetched first."""
    return download(engine_config(arguments), on_phase)
