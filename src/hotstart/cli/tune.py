"""`hotstart tune [MODEL ...] --export FILE`: time the tiles of every kernel on this GPU, and write a table of them.

Libraries that are installed are timed against our prefill as well.  The figures also go to this machine's cache, so
that later starts time nothing.  A table can be shipped with the package: put it into src/hotstart/kernels/tables.
"""

import argparse
from pathlib import Path

from hotstart.cli.flags import Commands

__all__ = ["add_command"]

TIME_LIMIT_S = 600.0


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("tune", help="time the tiles of kernels on this GPU", description=__doc__)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="folders with a config.json, or published sizes: qwen3.5-4b, ...; default: every published size",
    )
    parser.add_argument("--export", type=Path, metavar="FILE", help="write, or add to, a table that can be contributed")
    parser.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT_S, metavar="S", help="seconds in all (default: 600)"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from hotstart.config.published import PUBLISHED  # here, so that `--help` needs no torch
    from hotstart.config.shapes import find_shape
    from hotstart.engine.progress import show_tuning
    from hotstart.engine.tuning import compare_backends, export, tune_models

    names = arguments.models or list(PUBLISHED)
    configs = [find_shape(name) for name in names]
    with show_tuning() as on_tuning:
        report = tune_models(configs, time_limit_s=arguments.time_limit, on_tuning=on_tuning)
        compared = compare_backends(configs, arguments.time_limit - report.seconds, on_tuning=on_tuning)
    for line in (*report.choices, *compared.lines):
        print(line)
    if arguments.export is not None:
        count = export(report.target.gpu, (*report.entries, *compared.entries), arguments.export)
        print(f"{arguments.export}: {count} entries for {report.target.gpu}")
