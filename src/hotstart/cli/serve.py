"""`hotstart serve MODEL`: an OpenAI-compatible HTTP server.  It listens at once and serves when everything is warm."""

import argparse
from typing import TYPE_CHECKING

from hotstart.cli.flags import Commands, add_engine_flags, add_flags, engine_config, given_options
from hotstart.config.options import options_of
from hotstart.config.server import API_KEY_VARIABLE, Keys, ServerConfig

if TYPE_CHECKING:
    from hotstart.server.service import Service

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("serve", help="answer OpenAI's API over HTTP", description=__doc__)
    add_engine_flags(parser)
    group = parser.add_argument_group("server")
    add_flags(group, options_of(ServerConfig))
    group.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        default=[],
        help=f"what clients must send; repeat for several (default: ${API_KEY_VARIABLE})",
    )
    group.add_argument("--insecure-no-auth", action="store_true", help="listen for others without a key")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from hotstart.server.run import serve  # here, so that `--help` needs no server

    server = ServerConfig(**given_options(arguments, options_of(ServerConfig)))
    keys = Keys.read(arguments.api_key, server, arguments.insecure_no_auth)
    serve(engine_config(arguments), server, keys, _show_ready)


def _show_ready(service: "Service", url: str) -> None:
    print(f"ready: {url}")
