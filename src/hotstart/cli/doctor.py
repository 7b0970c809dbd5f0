"""`hotstart doctor`: what this machine has, what would be used, what is missing and how to get it.

Exit code 0 where hotstart can run, 1 where something that it needs is missing.
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from hotstart.cli.flags import Commands

if TYPE_CHECKING:
    from hotstart.cli.findings import Finding

__all__ = ["add_command"]

EXIT_MISSING = 1
MARKS = {"ok": ("ok", "green"), "note": ("--", "yellow"), "missing": ("!!", "red")}


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="look at this machine", description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from hotstart.cli.findings import examine  # here, so that `--help` takes no time

    findings = list(examine())
    missing = [found.name for found in findings if found.state == "missing"]
    if arguments.json:
        print(json.dumps({"can_run": not missing, "findings": [asdict(found) for found in findings]}, indent=2))
    else:
        _show(findings)
        print(f"\nmissing: {', '.join(missing)}" if missing else "\nhotstart can run here")
    return EXIT_MISSING if missing else 0


def _show(findings: "list[Finding]") -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    width = max(len(found.name) for found in findings)
    for found in findings:
        mark, style = MARKS[found.state]
        console.print(f"[{style}]{mark}[/{style}]  {found.name:<{width}}  ", end="")
        console.print(found.text, markup=False)
        if found.remedy:
            console.print(f"{'':<{width + 6}}{found.remedy}", markup=False, style="dim")
