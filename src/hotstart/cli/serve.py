"""`hotstart serve MODEL`: an OpenAI-compatible HTTP server.  It listens at once and serves when everything is warm.

A command line written for vLLM can be pasted: `hotstart vllm serve ...`.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from hotstart import log
from hotstart.cli.banner import banner
from hotstart.cli.flags import Commands, add_engine_flags, add_grouped_flags, engine_config, given_options
from hotstart.cli.settings import prepare
from hotstart.config.hub import check_names
from hotstart.config.options import options_of
from hotstart.config.server import API_KEY_VARIABLE, Keys, ServerConfig

if TYPE_CHECKING:
    from hotstart.server.service import Service

__all__ = ["SERVER_GROUPS", "add_command"]


SERVER_GROUPS = {
    "server: answers": (
        "served_model_name",
        "chat_template",
        "default_chat_template_kwargs",
        "generation_config",
        "override_generation_config",
    ),
    "server: pages of other origins": ("allowed_origins", "allowed_methods", "allowed_headers", "allow_credentials"),
    "server: limits": (
        "max_num_queued_reqs",
        "shutdown_timeout",
        "sse_keep_alive_interval",
        "engine_timeout",
        "step_timeout",
    ),
}


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve", help="answer OpenAI's API over HTTP", description=__doc__, prepare=partial(prepare, of_vllm=True)
    )
    add_engine_flags(parser)
    group = add_grouped_flags(parser, "server", options_of(ServerConfig), SERVER_GROUPS)["server"]
    group.add_argument(
        "--api-key",
        action="extend",
        nargs="+",
        metavar="KEY",
        default=[],
        help=f"what clients must send, one or several (default: ${API_KEY_VARIABLE})",
    )
    group.add_argument("--insecure-no-auth", action="store_true", help="listen for others without a key")
    group.add_argument(
        "--drop-unsupported", action="store_true", help="leave out vLLM's flags that there are not here, and say so"
    )
    group.add_argument("--no-progress", action="store_true", help="show nothing of start-up but the log")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from hotstart.engine.progress import show_startup  # here, so that `--help` takes no time
    from hotstart.server.run import serve

    server = ServerConfig(**given_options(arguments, options_of(ServerConfig)))
    keys = Keys.read(arguments.api_key, server, arguments.insecure_no_auth)
    config = engine_config(arguments)
    check_names(config)
    if not arguments.no_progress:
        print(arguments.settings.explain(), file=sys.stderr)
    for problem in arguments.settings.dropped if arguments.no_progress else ():
        log.warning("flag left out", flag=problem.given.flag, answers=problem.verdict, why=problem.reason)
    with ExitStack() as progress:
        on_phase = progress.enter_context(show_startup(not arguments.no_progress))

        def on_ready(service: "Service", url: str) -> None:
            progress.close()  # bars that are drawn anew ten times a second would cost the requests their time
            # Not by rich, which imports what it needs when it prints: that would be late.
            begin, end = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
            print("\n" * sys.stdout.isatty(), end="")
            for name, value in banner(service, url).items():
                print(f"{begin}{name:<12}{end} {value}", flush=True)

        serve(config, server, keys, on_phase, on_ready)
