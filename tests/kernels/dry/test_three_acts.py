"""The demo: late compiles without a warm-up, late compiles after a wrong one, none after the real one."""

import importlib.util
import sys
from pathlib import Path

import pytest

from hotstart.kernels import gdn_decode

EXAMPLE = Path(__file__).parents[3] / "examples" / "three_acts.py"


@pytest.fixture(scope="module")
def three_acts():
    spec = importlib.util.spec_from_file_location("three_acts", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_three_acts(three_acts):
    first, second, third = three_acts.acts("qwen3.5-4b", "rtx5090", steps=100)
    assert first.warmed == 0
    compiled, tuned = ([event for event in first.events if event.kind == kind] for kind in ("compile", "tuning"))
    assert len(compiled) > 0 and len(tuned) > 0
    never = [event for event in compiled if event.cause == "this kernel was never warmed"]
    assert {event.key.partition("(")[0] for event in compiled} == {event.key.partition("(")[0] for event in never}
    assert {event.key.partition("(")[0] for event in tuned} == {"_self_tuning_norm_kernel"}
    assert len(second.events) > 0
    assert all("state_ptr is *fp32, was *bf16" in event.cause for event in second.events)
    assert second.warmed == third.warmed
    assert third.events == ()


def test_it_fails_if_the_real_warm_up_forgets_something(three_acts, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # main sets it; this sets it back
    monkeypatch.setattr(gdn_decode._launch_gdn_step, "warmup", lambda space: None)
    assert three_acts.main(["--steps", "5"]) == 1
    assert "gdn_step_kernel" in capsys.readouterr().out.split("real path")[1]
