"""`hotstart generate MODEL --prompt TEXT`: the answer, streamed to stdout."""

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from hotstart.cli.flags import Commands, add_engine_flags, engine_options
from hotstart.cli.settings import prepare
from hotstart.engine.head_start import begin_context
from hotstart.errors import InvalidPrompt
from hotstart.request import SamplingParams

if TYPE_CHECKING:
    from hotstart.engine.llm import LLM, Prompt

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "generate", help="answer prompts, streaming the text", description=__doc__, prepare=prepare
    )
    add_engine_flags(parser)
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--prompt", action="append", metavar="TEXT", help="repeat for several; - reads standard input, the default"
    )
    prompts.add_argument("--chat", action="store_true", help="each prompt is a user's turn of the chat template")
    sampling = parser.add_argument_group("sampling (default: what the checkpoint's generation_config.json says)")
    for flag, kind, metavar, about in (
        ("--max-tokens", int, "N", "tokens of the answer, at most (default: 256)"),
        ("--min-tokens", int, "N", "tokens of the answer, at least"),
        ("--temperature", float, "T", "0 takes the likeliest token"),
        ("--top-k", int, "K", "of the K likeliest tokens; 0 is all"),
        ("--top-p", float, "P", "of the likeliest tokens that make up probability P"),
    ):
        sampling.add_argument(flag, type=kind, metavar=metavar, help=about, default=argparse.SUPPRESS)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="ends the answer", default=argparse.SUPPRESS)
    sampling.add_argument("--ignore-eos", action="store_true", help="go on to max-tokens", default=argparse.SUPPRESS)
    parser.add_argument("--quiet", action="store_true", help="nothing but answers and errors")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    wishes = _wishes(arguments)
    SamplingParams(**wishes)  # what no answer can follow is refused before a model is loaded
    begin_context(engine_options(arguments).get("device", "auto"))
    from hotstart.engine.llm import LLM  # here, so that `--help` needs no torch

    texts = [_read(text) for text in arguments.prompt or ["-"]]
    with LLM(**engine_options(arguments), use_tqdm=not arguments.quiet) as llm:
        params = dataclasses.replace(llm.get_default_sampling_params(), **wishes)
        prompts: list[Prompt] = [_as_chat(llm, text) if arguments.chat else text for text in texts]
        if len(prompts) == 1:
            for text in llm.stream(prompts[0], params):
                print(text, end="", flush=True)
            print()
            return
        results = llm.generate(prompts, params, use_tqdm=not arguments.quiet)
        for number, result in enumerate(results, 1):
            print(f"--- {number} of {len(results)}", result.outputs[0].text, sep="\n")
        for result in results:
            if result.error is not None:
                raise result.error


def _read(text: str) -> str:
    if text != "-":
        return text
    if sys.stdin.isatty():
        print("the prompt (end it with Ctrl-D):", file=sys.stderr)
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidPrompt(f"standard input is no UTF-8 text ({error.reason} at byte {error.start})") from error


def _as_chat(llm: "LLM", text: str) -> "Prompt":
    return llm.chat_prompt([{"role": "user", "content": text}])


def _wishes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of sampling, as the flags say them."""
    names = ("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "stop", "ignore_eos")
    return {"max_tokens": 256} | {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
