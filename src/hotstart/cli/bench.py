"""`hotstart bench WHAT MODEL`: measure an engine on this machine, raw samples as JSON.

WHAT is one of them or several, in their order: startup, first-request, latency, throughput, steps, options, lengths,
traffic, burst, neighbour.  All of them run in one process after one start, so a cold or warm start is a matter of the
caches on disk.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hotstart.cli.flags import Commands, add_engine_flags, engine_options, local_config
from hotstart.cli.settings import prepare
from hotstart.engine.head_start import begin_context
from hotstart.errors import ConfigError

__all__ = ["add_command"]

NAMES = (
    *("startup", "first-request", "latency", "throughput", "steps"),
    *("options", "lengths", "traffic", "burst", "neighbour"),
)
FEWEST_TOKENS = 16  # of a sequence


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "bench", help="measure an engine on this machine", description=__doc__, prepare=prepare
    )
    parser.add_argument("what", metavar="WHAT", help=f"of {', '.join(NAMES)}; several with commas between")
    add_engine_flags(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the JSON goes; default: standard output")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="of traffic (default: 10000)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    begin_context(engine_options(arguments).get("device", "auto"))
    from functools import partial  # here, so that `--help` needs no torch

    from hotstart.bench.client import Client, state
    from hotstart.bench.record import facts, last_name, process_seconds
    from hotstart.bench.suites import SUITES
    from hotstart.bench.traffic import traffic
    from hotstart.engine.progress import show_startup
    from hotstart.engine.startup import start

    wanted = arguments.what.split(",")
    if unknown := [suite for suite in wanted if suite not in NAMES]:
        raise ConfigError(f"{unknown[0]!r} is nothing that can be measured; known: {', '.join(NAMES)}")
    if arguments.output is not None and not arguments.output.parent.is_dir():
        raise ConfigError(f"--output: there is no folder {arguments.output.parent}; make it first")
    name = Path(arguments.model or "").name
    suites = SUITES | {"traffic": partial(traffic, num_requests=arguments.requests)}
    with _folder(arguments), show_startup(not arguments.quiet) as on_phase:
        engine = start(local_config(arguments, on_phase), on_phase)
    ready = process_seconds()
    with contextlib.closing(engine):
        found: dict[str, Any] = {
            **facts(engine.device),
            "model": name,
            "options": {name: last_name(value) for name, value in engine_options(arguments).items() if name != "model"},
            "process_to_ready_s": ready,
            "startup": SUITES["startup"](Client(engine)),
            "plan": engine.memory_plan.as_dict(),
        }
        client = Client(engine)
        if client.longest < FEWEST_TOKENS:
            raise ConfigError(
                f"sequences have up to {client.longest} tokens here, too few to measure anything; raise "
                f"--max-model-len to {FEWEST_TOKENS}"
            )
        for suite in wanted:
            found[suite] = suites[suite](client)
            found |= state(engine)
            if arguments.output is not None:  # what is measured is not lost to what comes after
                arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.output is None:
        print(json.dumps(found, indent=1))
    return 0


@contextlib.contextmanager
def _folder(arguments: argparse.Namespace) -> Iterator[None]:
    """A published size gets a folder with its config.json, and weights at random."""
    from hotstart.config.published import PUBLISHED

    name = (arguments.model or "").lower().removeprefix("qwen/")
    if name not in PUBLISHED or Path(arguments.model).is_dir():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(PUBLISHED[name]))
        arguments.model, arguments.load_format = folder, "dummy"
        yield
