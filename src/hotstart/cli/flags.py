"""Command-line flags, derived from EngineConfig's fields."""

import argparse
from typing import Any

from hotstart.config.engine import EngineConfig, options

__all__ = ["Commands", "add_engine_flags", "engine_config", "engine_options"]

Commands = Any  # argparse names no public type for what add_subparsers returns


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint in Hugging Face's layout")
    group = parser.add_argument_group("engine")
    for option in options():
        default = "" if option.default is None else f" (default: {option.default})"
        group.add_argument(
            option.flag,
            dest=option.name,
            default=argparse.SUPPRESS,
            choices=option.choices or None,
            metavar=option.metavar,
            help=(option.help + default).replace("%", "%%"),
        )
    group.add_argument(
        "--strict",
        dest="jit_monitor_mode",
        action="store_const",
        const="error",
        default=argparse.SUPPRESS,
        help="the same as --jit-monitor-mode error",
    )


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that the user set, as text, which EngineConfig reads."""
    names = ["model", *(option.name for option in options())]
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def engine_config(arguments: argparse.Namespace) -> EngineConfig:
    return EngineConfig(**engine_options(arguments))
