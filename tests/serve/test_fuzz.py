"""What /openapi.json allows and what it forbids, drawn by schemathesis: never a 5xx, always what is described."""

import re
import subprocess
import sys
from pathlib import Path

from serve.conftest import KEY, Server

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
EXAMPLES = 20  # of each operation and kind; its phase "coverage" takes minutes and is run by hand


def test_no_request_that_can_be_described_makes_the_server_fail(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--checks", ",".join(CHECKS), "--phases", "fuzzing"]
    command += ["--max-examples", str(EXAMPLES), "--seed", "1", "--generation-database", "none", "--no-color"]
    command += ["--request-timeout", "60", "--warnings", "off", "--suppress-health-check", "all"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"Selected: (\d+)/\1\n  Tested: \1", done.stdout), done.stdout[-2000:]
    server.wait_until(server.is_idle, "idle")
    assert server.ask("/plan")[1]["late_events"] == []
