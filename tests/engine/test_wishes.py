"""Wishes about memory: lengths that are to be found, budgets of a GPU, a warm-up that is left out."""

import pytest
from tiny import CONFIGS

from hotstart.config.engine import EngineConfig
from hotstart.config.model import parse_model_config
from hotstart.engine import startup
from hotstart.engine.device import CpuDevice
from hotstart.engine.sizes import GpuSizes, gpu_budget
from hotstart.engine.sizing import read_wishes
from hotstart.errors import ConfigError

GIB = 1 << 30


def test_an_automatic_length_is_the_models_own_and_gives_way(start_engine, monkeypatch):
    config = parse_model_config(CONFIGS["dense"] | {"max_position_embeddings": 262144}, {})
    auto, default, mine = (
        read_wishes(EngineConfig(model="x", max_model_len=wish), config, GpuSizes()).max_model_len
        for wish in ("auto", None, "1K")
    )
    assert [(w.value, w.explicit) for w in (auto, default, mine)] == [(262144, False), (32768, False), (1024, True)]
    with pytest.raises(ConfigError, match="--max-model-len"):
        EngineConfig(model="x", max_model_len="long")
    with pytest.raises(ConfigError, match="at least 2"):
        EngineConfig(model="x", max_model_len=0)
    assert start_engine(max_model_len="auto").memory_plan.max_model_len == CONFIGS["dense"]["max_position_embeddings"]


@pytest.mark.parametrize(
    ("wishes", "display", "total", "reserve"),
    [
        ({}, False, 80 * GIB, GIB // 4),
        ({}, True, 80 * GIB, GIB),
        ({"reserve_bytes": 0}, True, 80 * GIB, 0),
        ({"device_memory_bytes": "32GiB"}, False, 32 * GIB, GIB // 4),
        ({"device_memory_bytes": "80GiB"}, False, 80 * GIB, GIB // 4),
        ({"gpu_memory_utilization": 0.5}, False, 40 * GIB, GIB // 4),
        ({"gpu_memory_utilization": 0.5, "device_memory_bytes": "32GiB"}, False, 16 * GIB, GIB // 4),
    ],
    ids=str,
)
def test_the_budget_of_a_gpu(wishes, display, total, reserve):
    budget = gpu_budget(EngineConfig(model="x", **wishes), 80 * GIB, "a GPU", has_display=display)
    assert (budget.num_bytes, budget.reserve_bytes) == (total, reserve)
    assert all(("--" + name.replace("_", "-") in budget.source) for name in wishes if name == "gpu_memory_utilization")


def test_a_card_larger_than_it_is_cannot_be():
    with pytest.raises(ConfigError, match=r"--device-memory-bytes is 96\.00 GiB, a GPU has 80\.00 GiB; lower it"):
        gpu_budget(EngineConfig(model="x", device_memory_bytes="96GiB"), 80 * GIB, "a GPU", has_display=False)


def test_a_chunk_length_that_was_asked_for_is_used(start_engine):
    assert start_engine(gdn_chunk_length="16").device.chunk_length == 16
    assert CpuDevice.chunk_length == 32


def test_nothing_can_be_left_out_where_nothing_is_warmed(folders):
    with pytest.raises(ConfigError, match="--unsafe-skip-warmup"):
        startup.start(EngineConfig(model=str(folders["dense"]), load_format="dummy", unsafe_skip_warmup=True))
