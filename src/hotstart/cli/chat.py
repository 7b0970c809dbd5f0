"""`hotstart chat [MODEL | URL]`: talk to a model in the terminal.

With a URL, to a server that runs there (also one of another kind that speaks OpenAI's API); with a model, to an engine
started for it; with neither, to http://127.0.0.1:8000.  Where input is no terminal, each of its lines is a turn.
"""

import argparse
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hotstart.cli.flags import Commands, add_engine_flags, engine_options
from hotstart.cli.settings import prepare
from hotstart.errors import EngineDead, RequestError

if TYPE_CHECKING:
    from hotstart.cli.talk import Message, Piece, Talker

__all__ = ["add_command"]

DEFAULT_URL = "http://127.0.0.1:8000"
HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("chat", help="talk to a model in the terminal", description=__doc__, prepare=prepare)
    add_engine_flags(parser, "folder of a checkpoint, its name on the hub, or the URL of a server")
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    group.add_argument("--no-thinking", action="store_true", help="ask for answers without reasoning")
    for flag, kind, metavar, about in (
        ("--max-tokens", int, "N", "tokens of an answer, at most (default: what there is room for)"),
        ("--temperature", float, "T", "0 takes the likeliest token"),
        ("--top-p", float, "P", "of the likeliest tokens that make up probability P"),
        ("--top-k", int, "K", "of the K likeliest tokens; 0 is all"),
    ):
        group.add_argument(flag, type=kind, metavar=metavar, help=about, default=argparse.SUPPRESS)
    group.add_argument("--api-key", metavar="KEY", help="what the server asks for")
    group.add_argument("--model-name", metavar="NAME", help="of the server's models (default: its first)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from hotstart.cli.talk import Engine, Server  # here, so that `--help` takes no time

    target = arguments.model or DEFAULT_URL
    names = ("max_tokens", "temperature", "top_p", "top_k")
    wishes = {name: getattr(arguments, name) for name in names if name in arguments}
    template: dict[str, Any] = {"enable_thinking": False} if arguments.no_thinking else {}
    system: list[Message] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    with ExitStack() as stack:
        talker: Talker
        if "://" in target or target.startswith("unix:"):
            asked = {"chat_template_kwargs": template} if template else {}
            asked |= {"model": arguments.model_name} if arguments.model_name else {}
            talker = Server(target, arguments.api_key, {**wishes, **asked})
            talker.connect(lambda message: print(message, file=sys.stderr))
        else:
            from hotstart.engine.llm import LLM  # here, so that a server's URL needs no torch

            llm = stack.enter_context(LLM(**engine_options(arguments), use_tqdm=sys.stderr.isatty()))
            params = replace(llm.get_default_sampling_params(), **{"max_tokens": None, **wishes})
            talker = Engine(llm, params, template, target)
        conversation = _Conversation(talker, system)
        _talk(conversation) if sys.stdin.isatty() else _pipe(conversation)


@dataclass(slots=True)
class _Conversation:
    talker: "Talker"
    system: "list[Message]"
    turns: "list[Message]" = field(default_factory=list)

    def answer(self, text: str) -> "Generator[Piece, None, None]":
        """The pieces as they come.  A turn without answer is forgotten; one that was stopped keeps what it has."""
        question = {"role": "user", "content": text}
        said = ""
        try:
            for is_reasoning, piece in self.talker.answer([*self.system, *self.turns, question]):
                said += "" if is_reasoning else piece
                yield is_reasoning, piece
        finally:
            if said:
                self.turns += [question, {"role": "assistant", "content": said}]


def _pipe(conversation: _Conversation) -> None:
    """Answers alone, for programs."""
    for line in sys.stdin:
        if line.strip():
            for is_reasoning, piece in conversation.answer(line.rstrip("\n")):
                print("" if is_reasoning else piece, end="", flush=True)
            print(flush=True)


def _talk(conversation: _Conversation) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{conversation.talker.name}\n{HELP}", style="dim")
    while (text := _read(console)) is not None:
        match text.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                conversation.turns.clear()
                console.print("forgotten", style="dim")
            case command if command.startswith("/") and " " not in command:
                console.print(HELP, style="dim")
            case _:
                _show(console, conversation, text)


def _read(console: Any) -> str | None:
    try:
        import readline  # noqa: F401  its import gives input() a history and keys to edit with

        return str(console.input("\n[bold]>[/bold] "))
    except EOFError:
        console.print()
        return None
    except KeyboardInterrupt:
        console.print()
        return ""


def _show(console: Any, conversation: _Conversation, text: str) -> None:
    was_reasoning = False
    try:
        with closing(conversation.answer(text)) as pieces:
            for is_reasoning, piece in pieces:
                if was_reasoning and not is_reasoning:
                    console.print("\n")
                was_reasoning = is_reasoning
                console.print(piece, end="", markup=False, style="dim italic" if is_reasoning else None)
        console.print()
    except KeyboardInterrupt:
        console.print("  (stopped)", style="dim")
    except RequestError as error:
        console.print(f"{error}\n(/reset begins a new conversation)", style="red", markup=False)
    except EngineDead:
        console.print()
        raise
