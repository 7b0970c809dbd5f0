"""A whole start-up for a GPU that is not here: every phase, graphs among them, then traffic under --strict."""

import json

import pytest
from tiny import CONFIGS

from hotstart.config.engine import EngineConfig
from hotstart.engine import kernels, startup
from hotstart.engine.check import StubDevice
from hotstart.engine.space import launch_space
from hotstart.engine.stub import ReplayDevice
from hotstart.engine.traffic import random_traffic
from hotstart.errors import ConfigError, LateEventError, StartupError
from hotstart.kernels import dry

GPU_PHASES = [
    "read config",
    "prepare grammars",
    "choose kernels",
    "build model",
    "load weights",
    "warm up kernels",
    "run rungs",
    "try capture",
    "plan memory",
    "allocate caches",
    "capture graphs",
    "trial requests",
]


@pytest.fixture
def start(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["moe"]))

    def make(gpu, **wishes):
        monkeypatch.setattr(startup, "_device", lambda config: ReplayDevice(dry.parse_gpu(gpu)))
        # The warm-up's second pass is on tensors with data.
        monkeypatch.setattr(kernels, "launch_space", lambda *args: launch_space(*args[:4], StubDevice(), *args[5:]))
        small = {"max_model_len": 200, "max_num_seqs": 20, "max_num_batched_tokens": 256, "tune": "off"}
        limits = {"kv_cache_memory_bytes": "2MiB", "load_format": "dummy", "jit_monitor_mode": "error"}
        return startup.start(EngineConfig(**{"model": str(tmp_path), **small, **limits, **wishes}))

    return make


def test_start_to_sealed_and_traffic_after_it(start):
    with dry.gpu("rtx5090"):
        engine = start("rtx5090")
        assert [phase.name for phase in engine.startup.phases] == GPU_PHASES
        assert engine.memory_plan.total_bytes == dry.parse_gpu("rtx5090").memory_bytes[0]
        assert engine.memory_plan.measured.reserve_bytes == 1 << 30  # a screen is likely to hang on it
        random_traffic(engine, 80)
        assert engine.late_events == () and engine.growth.arena_bytes == 0
        engine.close()


@pytest.mark.parametrize(
    "wishes",
    [
        {"max_num_seqs": 1},
        {"max_num_seqs": 1, "max_num_batched_tokens": 1},
        {"max_num_seqs": 3, "max_num_batched_tokens": 3},
        {"max_num_batched_tokens": 65},
        {"max_model_len": 2},
        {"block_size": 1},
        {"block_size": 48, "enable_prefix_caching": True},
        {"block_size": 256},
        {"cudagraph_capture_sizes": (2, 5)},
        {"enforce_eager": True},
    ],
    ids=str,
)
def test_wishes_at_the_ends_of_what_is_allowed_are_met(wishes, start):
    with dry.gpu("h200"):
        engine = start("h200", **wishes)
        random_traffic(engine, 40)
        engine.check()
        assert engine.late_events == () and engine.growth.arena_bytes == 0
        assert {name: getattr(engine.limits, name) for name in wishes if name.startswith("max_")} == {
            name: wish for name, wish in wishes.items() if name.startswith("max_")
        }
        engine.close()


def test_a_wish_that_the_named_gpu_cannot_meet_is_refused(start):
    with dry.gpu("rtx4090"), pytest.raises(ConfigError, match=r"--device-memory-bytes is 40\.00 GiB, .* RTX 4090 has"):
        start("rtx4090", device_memory_bytes="40GiB")


def test_captures_that_take_more_than_their_trial_stop_the_start(start, monkeypatch):
    taken, capture = [0], startup.capture
    monkeypatch.setattr(ReplayDevice, "resident_bytes", lambda device: taken[0])

    def greedy(*args):
        capture(*args)
        taken[0] += 3 << 30

    monkeypatch.setattr(startup, "capture", greedy)
    with dry.gpu("rtx5090"), pytest.raises(StartupError, match=r"captured steps took 3 GiB, .* 1 GiB in reserve"):
        start("rtx5090")


def test_memory_that_another_process_gives_back_during_the_trial_is_not_ours(start, monkeypatch):
    card = iter(range(1 << 40, 0, -(1 << 30)))  # a GiB less at each look
    monkeypatch.setattr("hotstart.engine.stub._StubRecorder.taken_bytes", lambda recorder: next(card))
    with dry.gpu("rtx5090"):
        engine = start("rtx5090")
        assert 0 <= engine.memory_plan.measured.graphs_bytes < 1 << 30
        engine.close()


def test_without_the_warm_up_everything_is_late(start):
    with dry.gpu("h200"):
        engine = start("h200", unsafe_skip_warmup=True)
        details = {phase.name: phase.detail for phase in engine.startup.phases}
        assert details["warm up kernels"] == "SKIPPED" and details["run rungs"].startswith("SKIPPED; foretold")
        assert "try capture" not in details
        with pytest.raises(LateEventError, match="late compile"):
            random_traffic(engine, 5)
        engine.close()
