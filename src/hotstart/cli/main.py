"""The command `hotstart`.  A mistake of the user's is one line on stderr and exit code 2, never a traceback."""

import os
import sys
from collections.abc import Sequence

import hotstart
from hotstart.cli import audit, bench, chat, check, doctor, generate, plan, serve, tune, vllm
from hotstart.cli.parser import EXIT_MISTAKE, Parser
from hotstart.errors import EngineDead, HotstartError, StepError

__all__ = ["main", "make_parser"]

EXIT_ENGINE_FAILED, EXIT_INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    words = vllm.strip_command(sys.argv[1:] if argv is None else argv)
    if not words:
        make_parser().print_help()
        return 0
    try:
        arguments = make_parser().parse_args(words)
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


def make_parser() -> Parser:
    parser = Parser(prog="hotstart", description=hotstart.__doc__ and hotstart.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"hotstart {hotstart.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve.add_command(commands)
    generate.add_command(commands)
    chat.add_command(commands)
    plan.add_command(commands)
    check.add_command(commands)
    audit.add_command(commands)
    tune.add_command(commands)
    bench.add_command(commands)
    doctor.add_command(commands)
    return parser


def _complain(error: HotstartError, code: int) -> int:
    print(f"hotstart: {' '.join(str(error).split())}", file=sys.stderr)
    return code
