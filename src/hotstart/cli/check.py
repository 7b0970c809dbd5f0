"""`hotstart check MODEL --gpu NAME`: without that GPU, compile for it and prove that no traffic compiles later."""

import argparse
import json
from pathlib import Path

from hotstart.cli.flags import Commands

__all__ = ["add_command"]

EXIT_LATE = 1


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("check", help="compile for a GPU that is not here", description=__doc__)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder with a config.json, a published size (qwen3.5-4b, ...), or a name on the hub",
    )
    parser.add_argument("--gpu", required=True, metavar="NAME", help="rtx5090, rtx4090, a100, h200, sm_120:99KiB, ...")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="random steps (default: 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the traffic (default: 0)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from hotstart.config.shapes import find_shape  # here, so that `--help` needs no torch
    from hotstart.engine.check import check

    config = find_shape(arguments.model)
    report = check(config, Path(arguments.model).name, arguments.gpu, num_steps=arguments.steps, seed=arguments.seed)
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report.explain())
    return 0 if report.passed else EXIT_LATE
