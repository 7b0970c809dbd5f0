"""Start-up: phases in order with seconds and bytes, a plan that is what was allocated, and wishes it must refuse."""

import json

import pytest
import torch
from tiny import CONFIGS
from triton.runtime.autotuner import Autotuner

from hotstart.config.engine import EngineConfig
from hotstart.engine import startup
from hotstart.engine.phases import Phase, PhaseProgress
from hotstart.errors import (
    CheckpointError,
    ConfigError,
    HotstartError,
    InsufficientMemory,
    StartupError,
    UnsupportedModel,
)

PHASES = [
    "read config",
    "prepare grammars",
    "choose kernels",
    "build model",
    "load weights",
    "warm up kernels",
    "run rungs",
    "plan memory",
    "allocate caches",
    "trial requests",
]


def test_phases_are_named_timed_and_account_for_every_byte(folders):
    seen = []
    config = EngineConfig(model=str(folders["dense"]), load_format="dummy", max_num_batched_tokens=64, max_num_seqs=3)
    engine = startup.start(config, seen.append)
    phases = [event for event in seen if isinstance(event, Phase)]
    assert [phase.name for phase in phases] == PHASES and engine.startup.phases == tuple(phases)
    assert all(phase.seconds >= 0 for phase in phases)
    assert sum(phase.num_bytes for phase in phases) == engine.device.arena.reserved_bytes()
    rungs = [event for event in seen if isinstance(event, PhaseProgress) and event.name == "run rungs"]
    assert rungs[-1].done == rungs[-1].total > 0

    owners, plan = engine.device.arena.by_owner(), engine.memory_plan
    assert owners["cache"] == plan.num_pages * plan.measured.page_bytes + plan.num_slots * plan.measured.slot_bytes
    assert owners["weights"] == plan.measured.weights_bytes
    assert owners["staging"] + owners["sampling"] == plan.measured.buffers_bytes
    assert "minimal cache" not in owners
    assert json.loads(json.dumps(plan.as_dict()))["num_pages"] == plan.num_pages
    engine.close()


@pytest.mark.parametrize(
    ("wishes", "error", "words"),
    [
        ({"cpu_memory": "10MiB"}, InsufficientMemory, "raise --cpu-memory to"),
        ({"max_model_len": 513}, ConfigError, "--max-model-len is 513, the model was made for 512"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 4}, ConfigError, "--max-num-batched-tokens is 4, less than"),
        ({"max_num_seqs": 100_000_000}, InsufficientMemory, "lower --max-num-seqs, or raise"),
        ({"device": "cuda"}, ConfigError, "--device cuda"),
        ({"kernel_backend": "triton"}, ConfigError, "--kernel-backend triton needs a GPU"),
        ({"gdn_prefill_backend": "fla"}, ConfigError, "--gdn-prefill-backend fla needs a GPU"),
        ({"load_format": "auto"}, CheckpointError, "safetensors"),
        ({"model": "/nowhere"}, CheckpointError, "/nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(wishes, error, words, folders, monkeypatch):
    monkeypatch.setattr(startup, "fill_random", None)
    with pytest.raises(error, match=words) as refusal:
        startup.start(EngineConfig(**{"model": str(folders["dense"]), "load_format": "dummy", **wishes}))
    assert isinstance(refusal.value, HotstartError)


def test_an_unknown_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["dense"], "model_type": "mamba7"}))
    with pytest.raises(UnsupportedModel, match="mamba7"):
        startup.start(EngineConfig(model=str(tmp_path), load_format="dummy"))


@pytest.mark.parametrize("phase", ["run rungs", "trial requests"])
def test_a_failure_on_the_way_names_its_phase(phase, folders, monkeypatch):
    """...and leaves no hook behind."""
    launch, tuner = startup.Runner.launch, Autotuner.run

    def failing(runner, plan, **how):
        if (phase == "run rungs") == (runner._cache.num_pages == 1):
            raise torch.OutOfMemoryError("made up")
        return launch(runner, plan, **how)

    monkeypatch.setattr(startup.Runner, "launch", failing)
    config = EngineConfig(model=str(folders["dense"]), load_format="dummy", max_model_len=64, max_num_batched_tokens=64)
    with pytest.raises(StartupError, match="made up"):
        startup.start(config)
    assert Autotuner.run is tuner


def test_a_low_default_is_said(folders, monkeypatch):
    monkeypatch.setattr(startup.CpuDevice, "used_bytes", lambda self: 0)
    config = EngineConfig(model=str(folders["dense"]), load_format="dummy", cpu_memory="7MiB")
    engine = startup.start(config)
    plan = engine.memory_plan
    assert plan.max_num_batched_tokens < 1024
    assert "lowered: --max-num-batched-tokens from its default 1024" in plan.explain()
    assert sum(line.num_bytes for line in plan.lines) == 7 * 2**20
    engine.close()


def test_a_tiny_limit_still_starts(start_engine):
    for length in (2, 17):
        engine = start_engine(max_model_len=length, max_num_seqs=1, max_num_batched_tokens=1)
        assert engine.memory_plan.max_model_len == length
