"""Every file and test that docs/ORIGIN.md names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"\| `(?P<file>[\w./-]+)` \| `(?P<tests>[\w./-]+)::(?P<test>\w+)` \|$")


def test_every_row_names_a_file_and_a_test_that_exist():
    lines = (ROOT / "docs" / "ORIGIN.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        match = ROW.search(row)
        assert match, f"a row ends in | `file` | `tests::test` |: {row}"
        assert (ROOT / match["file"]).is_file(), row
        tree = ast.parse((ROOT / match["tests"]).read_text(encoding="utf-8"))
        assert match["test"] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
