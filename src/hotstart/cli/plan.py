"""`hotstart plan MODEL`: where every byte goes, and what limits follow.  It measures, so it starts the engine."""

import argparse
import json
from contextlib import closing

from hotstart.cli.flags import Commands, add_engine_flags, engine_config

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("plan", help="show the memory plan", description=__doc__)
    add_engine_flags(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from hotstart.engine.progress import show_startup  # here, so that `--help` needs no torch
    from hotstart.engine.startup import start

    config = engine_config(arguments)
    with show_startup(not arguments.quiet) as on_phase:
        engine = start(config, on_phase)
    with closing(engine):
        plan = engine.memory_plan
        print(json.dumps(plan.as_dict(), indent=2) if arguments.json else plan.explain())
