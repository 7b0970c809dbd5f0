"""The command `hotstart`.  A mistake of the user's is one line on stderr and exit code 2, never a traceback."""

import argparse
import os
import sys
from collections.abc import Sequence

import hotstart
from hotstart.cli import audit, check, generate, plan, serve, tune
from hotstart.errors import EngineDead, HotstartError, StepError

__all__ = ["main"]

EXIT_ENGINE_FAILED, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        code: int | None = arguments.run(arguments)
        sys.stdout.flush()
        return code or 0
    except (EngineDead, StepError) as error:
        return _complain(error, EXIT_ENGINE_FAILED)
    except HotstartError as error:
        return _complain(error, EXIT_MISTAKE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output is gone, as in `hotstart ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hotstart", description=hotstart.__doc__ and hotstart.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"hotstart {hotstart.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve.add_command(commands)
    generate.add_command(commands)
    plan.add_command(commands)
    check.add_command(commands)
    audit.add_command(commands)
    tune.add_command(commands)
    return parser


def _complain(error: HotstartError, code: int) -> int:
    print(f"hotstart: {' '.join(str(error).split())}", file=sys.stderr)
    return code
