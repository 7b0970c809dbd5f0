"""A library's prefill goes through the same door: warmed on real tensors, watched, refused or replaced if it fails."""

from dataclasses import replace

import pytest
import torch
from tiny import CONFIGS

from hotstart.config.engine import EngineConfig
from hotstart.config.model import parse_model_config
from hotstart.config.published import published_config
from hotstart.engine import kernels, tuning
from hotstart.engine.check import Checker
from hotstart.engine.kernels import choose_kernels, warm_up_kernels
from hotstart.engine.phases import PhaseProgress, RunningPhase
from hotstart.errors import WarmupError
from hotstart.kernels import dry, gdn_external
from hotstart.kernels.backends import ops_for
from hotstart.kernels.gdn_backends import PrefillChoice
from hotstart.kernels.launch import LAUNCHERS
from hotstart.kernels.warm_up import warm_up
from hotstart.kernels.watch import Watch

OURS = {"_inputs_kernel"}


@pytest.fixture
def checker():
    return Checker(parse_model_config(CONFIGS["moe"], {}), dtype="bfloat16")


@pytest.fixture
def calls(monkeypatch):
    """A library that computes nothing, and remembers on what it was called."""
    seen = []

    def rule(q, k, v, g, beta, *, initial_state, **options):
        seen.append((v.shape[1], q.device.type))
        return torch.zeros_like(v), torch.zeros_like(initial_state)

    monkeypatch.setattr(gdn_external, "_of_fla", lambda: rule)
    monkeypatch.setattr(kernels, "installed_packages", lambda: {"fla": "0.6.0"})
    return seen


def start(checker, wish="fla", tune="off"):
    config = EngineConfig(model="x", dtype="bfloat16", gdn_prefill_backend=wish, tune=tune)
    events = []
    choice = choose_kernels(config, checker.config, checker.limits, checker.device)
    running = RunningPhase("warm up kernels", events.append)
    return choice, warm_up_kernels(choice, config, running), running, events


@pytest.fixture
def a100():
    with dry.gpu("a100"):
        yield


def test_a_library_is_warmed_on_real_tensors_and_sealed(checker, calls, a100):
    with Watch("error") as watch:
        choice, warm, running, _ = start(checker)
        assert (choice.prefill.name, choice.ops.gdn_prefill) == ("fla", gdn_external.gdn_prefill_fla)
        assert {tokens for tokens, _ in calls} > {2048}  # as it will tune itself on what it sees first
        assert calls[0] == (2048, "cpu") and {device for _, device in calls} == {"cpu"}  # never on meta
        assert {key.kernel for key in warm.binaries.keys} >= OURS | {"_gdn_norm_kernel"}
        assert running.detail.startswith(f"{len(warm.binaries.binaries)} binaries; tiles: ")
        watch.seal()
        checker.ops = replace(checker.ops, gdn_prefill=choice.ops.gdn_prefill)
        before = len(calls)
        record = checker.run(30, watch)
    assert watch.events == []
    assert {key.kernel for key in record.counts} >= OURS
    assert len(calls) == before  # the whole model ran on meta, where a library has only shapes


def test_without_a_library_its_kernels_are_not_compiled(checker, a100):
    _, warm, _, _ = start(checker, wish="auto")
    assert not OURS & {key.kernel for key in warm.binaries.keys}
    external = {launcher.kernel.name for launcher in LAUNCHERS if launcher.warmup is gdn_external.warmup}
    assert external == OURS


def broken(*args, **options):
    raise OSError("nvcc: not found")


def test_an_explicit_backend_that_fails_stops_the_start(checker, calls, a100, monkeypatch):
    monkeypatch.setattr(gdn_external, "_of_fla", lambda: broken)
    with pytest.raises(WarmupError, match=r"--gdn-prefill-backend fla failed in its warm-up: .*nvcc: not found.*auto"):
        start(checker)


def test_our_own_choice_that_fails_is_replaced_before_anything_is_sized(checker, calls, a100, monkeypatch, caplog):
    monkeypatch.setattr(gdn_external, "_of_fla", lambda: broken)
    monkeypatch.setattr(kernels, "choose_prefill", lambda *a: PrefillChoice("fla", "2.00 times as fast as ours"))
    choice, warm, _, _ = start(checker, wish="auto")
    assert (choice.prefill.name, choice.space.gdn_prefill) == ("triton", "triton")
    assert "nvcc: not found" in choice.prefill.reason and "our kernels take its place" in choice.prefill.reason
    assert choice.ops.gdn_prefill is ops_for("triton").gdn_prefill
    assert not OURS & {key.kernel for key in warm.binaries.keys}
    assert "prefill backend failed  backend=fla" in caplog.text


def test_a_library_and_ours_are_timed_on_the_same_prompts(checker, calls, a100, monkeypatch):
    """The whole mixer, conv to gated norm; the stub's times are all 1 ms."""
    monkeypatch.setattr(tuning, "_SHAPES", ((512,), (64,), (16,) * 8))
    times = tuning._times(checker.space(), "fla")
    assert times == dict.fromkeys(["1x512", "1x64", "8x16"], 1000.0)
    assert [tokens for tokens, _ in calls] == [512, 64, 128]


def test_tuning_shows_how_long_it_may_yet_take(checker, a100, monkeypatch):
    def resolve(space, *, mode, command, on_tuning):
        assert mode == "force" and command
        on_tuning("gdn_scan", 3, 12, 41.2)
        return kernels.tune.TileReport(kernels.current_target(), (), 0.0, 0)

    monkeypatch.setattr(kernels.tune, "resolve", resolve)
    *_, events = start(checker, wish="auto", tune="force")
    assert events == [PhaseProgress("warm up kernels", 3, 12, "tuning gdn_scan: at most 41 s more")]


@pytest.mark.parametrize("program", ["bin/hotstart", "src/hotstart/__main__.py"])
def test_what_is_written_beside_a_measurement_names_no_folder(program, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"/home/me/{program}", "tune", "/data/qwen", "--export=/tmp/h200.json", "-v"])
    assert kernels.command_line() == "hotstart tune qwen --export=h200.json -v"


@pytest.mark.filterwarnings("ignore")  # the library warns while it is imported
def test_flash_linear_attention_itself_has_nothing_late_once_warmed():
    """Its autotuners, and the keys of steps of 2 to 200 tokens.  Half a minute."""
    checker = Checker(published_config("qwen3.5-4b"))
    space = replace(checker.space(), gdn_prefill="fla", num_tokens=256)
    with dry.gpu("rtx5090") as gpu, dry.torch_answers(gpu), Watch("error") as watch, torch.inference_mode():
        pytest.importorskip("fla", reason="flash-linear-attention is not installed: pip install 'hotstart[fla]'")
        warm_up(space)
        assert len(watch.tuned) >= 5
        watch.seal()
        cpu = torch.device("cpu")
        packed, weights, conv, state = replace(space, num_slots=8).on(cpu).gdn_inputs(space.gdn, torch.bfloat16)
        for lengths in ((2,), (3,), (16,), (17,), (64,), (65, 2), (200,), (2,) * 8):
            out = torch.empty(256, space.gdn.num_value_heads * space.gdn.value_dim, dtype=torch.bfloat16)
            prefill = space.prompts(cpu, lengths).prefill
            gdn_external.gdn_prefill_fla(packed, weights, conv, state, prefill, space.gdn, out)
            watch.check()
        assert watch.events == []
