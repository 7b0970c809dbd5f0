"""`hotstart plan MODEL`: where every byte goes, and what limits follow.

Here it starts the engine and measures.  With --gpu NAME it foretells the plan of a GPU that is not here, from
config.json alone: each line with its origin and uncertainty, the verdict with all of them at their pessimistic ends.
Exit code 0: it fits, 3: it does not, 2: a mistake.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path

from hotstart.cli.flags import Commands, add_engine_flags, engine_config, local_config
from hotstart.cli.settings import prepare
from hotstart.config.published import is_published
from hotstart.errors import ConfigError, InsufficientMemory

__all__ = ["add_command"]

EXIT_DOES_NOT_FIT = 3


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("plan", help="show the memory plan", description=__doc__, prepare=prepare)
    add_engine_flags(parser)
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="foretell for this GPU: rtx5090, rtx4090, l40s, h100, ...; MODEL may be a published size: qwen3.5-9b",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    return _measure(arguments) if arguments.gpu is None else _foretell(arguments)


def _measure(arguments: argparse.Namespace) -> int:
    from hotstart.engine.progress import show_startup  # here, so that `--help` needs no torch
    from hotstart.engine.startup import start

    config = engine_config(arguments)
    if "/" not in config.model and is_published(config.model) and not Path(config.model).is_dir():
        raise ConfigError(
            f"{config.model} is a published size, whose shape alone is known here: add --gpu NAME to foretell its "
            "plan, or name a checkpoint to start it"
        )
    try:
        with show_startup(not arguments.quiet) as on_phase:
            engine = start(local_config(arguments, on_phase), on_phase)
    except InsufficientMemory as error:
        print(f"it does not fit: {error}")
        return EXIT_DOES_NOT_FIT
    with closing(engine):
        plan = engine.memory_plan
        print(json.dumps(plan.as_dict(), indent=2) if arguments.json else plan.explain())
    return 0


def _foretell(arguments: argparse.Namespace) -> int:
    """Without torch: it answers in a fraction of a second."""
    from hotstart.config.shapes import find_shape
    from hotstart.engine.predict import predict
    from hotstart.kernels.gpus import parse_gpu

    config = engine_config(arguments)
    if config.device == "cpu" or config.cpu_memory is not None:
        raise ConfigError("--gpu foretells the plan of a GPU; leave out --device cpu and --cpu-memory")
    model = find_shape(config.model, config.revision, config.download_dir)
    found = predict(config, model, Path(config.model).name, parse_gpu(arguments.gpu))
    print(json.dumps(found.as_dict(), indent=2) if arguments.json else found.explain())
    return 0 if found.fits else EXIT_DOES_NOT_FIT
