"""`hotstart check` and `hotstart audit` as a user meets them: output and exit codes."""

import json

import pytest
from tiny import CONFIGS

from hotstart.cli.main import main
from hotstart.kernels import norm

PROGRAM = """
import sys
import torch, triton
import triton.language as tl
from hotstart import warmup

device = triton.runtime.driver.active.get_active_torch_device()

@triton.autotune([triton.Config(dict(), num_warps=w) for w in (1, 2)], key=["N"])
@triton.jit
def scale_kernel(x_ptr, g_ptr, n, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(x_ptr + offsets, tl.load(g_ptr + offsets), mask=offsets < n)

def serve(dtype):
    x, g = torch.zeros(64, device=device), torch.zeros(64, dtype=dtype, device=device)
    scale_kernel[(1,)](x, g, 17, N=16)

assert sys.argv[1:] == ["one", "--two"], sys.argv
serve(torch.float16)
"""
LATE = "serve(torch.float32)\n"
CALL, PRINT = "warmup.ready()\n", "print('all', 'warm')\n"


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "program.py"
        path.write_text(text)
        return [str(path), "one", "--two"]

    return write


def test_a_hand_written_warm_up_with_the_wrong_dtype(script, capsys):
    assert main(["audit", "--gpu", "rtx5090", *script(PROGRAM + CALL + LATE)]) == 1
    report = capsys.readouterr().err
    assert ": 2 compiles, 1 tuning runs" in report
    assert "after ready: 2 compile, 1 tuning, 2 load" in report
    assert "scale_kernel: g_ptr is *fp32, was *fp16" in report


def test_a_script_that_does_not_know_us_says_ready_by_what_it_prints(script, capsys):
    assert main(["audit", "--gpu", "sm_90", "--ready", "all warm", *script(PROGRAM + PRINT + LATE)]) == 1
    assert capsys.readouterr().out == "all warm\n"


def test_a_script_with_nothing_late_passes(script, capsys):
    assert main(["audit", "--gpu", "rtx5090", *script(PROGRAM + CALL + "serve(torch.float16)\nsys.exit(0)\n")]) == 0
    assert "after ready: nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "rtx5090"], "never said that it is ready"),
        (["--gpu", "gtx"], "unknown GPU 'gtx'"),
        ([], "there is no GPU here"),
    ],
)
def test_mistakes_are_one_line(arguments, message, script, capsys):
    assert main(["audit", *arguments, *script(PROGRAM)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_failing_script_still_gets_its_report(script, capsys):
    with pytest.raises(ZeroDivisionError):
        main(["audit", "--gpu", "rtx5090", *script(PROGRAM + CALL + "1 / 0")])
    assert "after ready: nothing" in capsys.readouterr().err


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["dense"]))
    return str(tmp_path)


def test_check_says_what_is_proved(model, capsys):
    assert main(["check", model, "--gpu", "rtx4090", "--steps", "10"]) == 0
    out = capsys.readouterr().out
    assert "10 random steps" in out
    assert ", 0 late" in out
    assert {"proved", "predicted", "not"} <= {line.split(" ")[0] for line in out.splitlines()}


def test_check_fails_without_one_warm_up(model, capsys, monkeypatch):
    monkeypatch.setattr(norm._launch, "warmup", lambda space: None)
    assert main(["check", model, "--gpu", "rtx4090", "--steps", "10", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["passed"]
    assert [event["cause"] for event in report["late"]] == ["this kernel was never warmed"]


def test_check_of_a_model_that_is_not_there(capsys):
    assert main(["check", "qwen9", "--gpu", "rtx4090"]) == 2
    assert "a published size" in capsys.readouterr().err
