"""Write docs/CLI.md from the commands' own parsers, or check that it is what they say.

python tools/cli_docs.py [--check]
"""

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from hotstart.cli.main import make_parser
from hotstart.cli.parser import Parser
from hotstart.cli.vllm import RELEASE, Row, read_table

DOCUMENT = Path(__file__).parents[1] / "docs" / "CLI.md"
HEAD = """# Command line

This document is written by `python tools/cli_docs.py` from the commands themselves.

Settings come from the command line, else from variables (`--max-model-len` is `HOTSTART_MAX_MODEL_LEN`; a switch is
`true` or `false`), else from `--config FILE`, YAML with the flags' names as keys and `model` for MODEL. `serve` prints
what was set and where it came from. Sizes are numbers of bytes or have a unit (`4GiB`, `512MiB`, `4GB`), counts may be
`4k` (4000) or `4K` (4096), as in vLLM. A mistake is one line on stderr and exit code 2; an engine that failed is 1,
Ctrl-C is 130.

`HOTSTART_LOGGING_LEVEL` (debug, info, warning, error) sets how much is logged, `HOTSTART_CACHE` where tiles measured on
this machine are kept. The hub's own variables count: `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`.
"""
PASTED = f"""\
`hotstart vllm serve ...`, and `hotstart serve` with vLLM's flags, start where every flag of vLLM {RELEASE} is
there, or has a value that asks for what happens in any case. Otherwise all that are not are told at once, with what
leaving them out does, and the command to paste instead; `--drop-unsupported` leaves them out. A flag that neither knows
is never left out.
"""
OWN = ("positional arguments", "options")  # the groups that argparse makes
SHARED = "engine"  # how the groups of flags begin that several commands have


def document() -> str:
    commands = make_parser().subparsers
    shared = [name for name, parser in commands.items() if any(title == SHARED for title, _ in parser.groups)]
    parts = [HEAD]
    for name, parser in commands.items():
        parts += [f"## hotstart {name}\n", _about(parser), f"    {_usage(name, parser)}\n"]
        groups = parser.groups
        own = [action for title, actions in groups if title in OWN for action in actions]
        for title, actions in [("", own), *(group for group in groups if group[0] not in OWN)]:
            rows = list(_rows(actions, parser))
            if title == SHARED:
                parts.append("And the [flags of the engine](#flags-of-the-engine).\n")
            elif rows and not title.startswith(SHARED):
                parts += [f"**{title}**\n"] * bool(title) + [_table(rows)]
    named = ", ".join(f"`{name}`" for name in shared)
    parts += ["## Flags of the engine\n", f"Of {named}.\n"]
    for title, actions in commands[shared[0]].groups:
        if title.startswith(SHARED):
            parts += [f"**{title}**\n", _table(list(_rows(actions, commands[shared[0]])))]
    return "\n".join([*parts, *_vllm()])


def _about(parser: Parser) -> str:
    return inspect.cleandoc(parser.description or "").strip() + "\n"


def _usage(name: str, parser: Parser) -> str:
    words = [action for action in parser._actions if not action.option_strings]
    shown = [f"[{word.metavar}]" if word.nargs in ("?", "*") else str(word.metavar) for word in words]
    return " ".join(["hotstart", name, *shown, "[flags]"])


def _rows(actions: list[argparse.Action], parser: Parser) -> Iterator[tuple[str, str]]:
    for action in actions:
        if action.dest == "help":
            continue
        text = (action.help or "").replace("%%", "%").replace("|", "\\|")
        if not action.option_strings:
            yield f"`{action.metavar or action.dest}`", text
            continue
        flag = parser.flags[action.option_strings[0]]
        wanted = f"{{{','.join(flag.choices)}}}" if flag.choices else flag.metavar
        value = "" if flag.takes == "switch" else f" {wanted}"
        more = " ..." if flag.takes == "values" else ""
        names = " / ".join(f"`{one}{value}{more}`" for one in action.option_strings)
        yield names, text


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]) + "\n"


def _vllm() -> Iterator[str]:
    rows = {row.names[0]: row for row in read_table().values()}
    yield "## Command lines written for vLLM\n"
    yield PASTED
    supported = [f"`{name}`" for name, row in rows.items() if row.verdict == "supported"]
    yield f"There as in vLLM ({len(supported)}): {', '.join(supported)}.\n"
    for verdict, title in (
        ("harmless", "Left out without any effect on the answers"),
        ("changes", "Not there, and answers differ without them"),
    ):
        chosen = [row for row in rows.values() if row.verdict == verdict]
        yield f"{title} ({len(chosen)}); in brackets the values that are taken as they are:\n"
        yield _table(list(_by_reason(chosen)))


def _by_reason(rows: list[Row]) -> Iterator[tuple[str, str]]:
    for reason in dict.fromkeys(row.reason for row in rows):
        chosen = [row for row in rows if row.reason == reason]
        names = [f"`{row.names[0]}`" + (f" ({', '.join(row.same)})" if row.same else "") for row in chosen]
        yield ", ".join(names), reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the document differs")
    wanted = document()
    if not parser.parse_args().check:
        DOCUMENT.write_text(wanted)
    elif not DOCUMENT.exists() or wanted != DOCUMENT.read_text():
        sys.exit(f"{DOCUMENT.name} is not what the commands say; run: python tools/cli_docs.py")


if __name__ == "__main__":
    main()
