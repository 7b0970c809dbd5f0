"""`make demo`'s program: exits with 0 on a sealed server, and with 1 once something happened after the seal."""

import demo
import pytest


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--break-the-seal"], 1)], ids=["sealed", "broken"])
def test_the_exit_code_is_what_the_seal_says(flags: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--seed", "3", "--requests", "4", *flags]) == code
    out = capsys.readouterr().out
    counters = {line.split()[0]: line.split()[1] for line in out.splitlines() if len(line.split()) == 2}
    kinds = ("compile", "tuning", "load", "memory", "import")
    assert [counters[kind] for kind in kinds] == ["n/a", "n/a", "n/a", str(code), "0"]
    assert ("all 100%\n" in out) == (code == 0)
    assert ("late memory: arena: grew by 1048576 bytes" in out) == (code == 1)
