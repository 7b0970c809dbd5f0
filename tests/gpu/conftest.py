"""The engine on a real GPU, with tiny models.

make test-gpu
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import CONFIGS

from hotstart.config.engine import EngineConfig
from hotstart.engine import startup
from hotstart.engine.engine import Engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """start_engine(family, **wishes): on the GPU, strict, small, with random weights."""
    engines = []

    def make(family: str = "dense", **wishes: object) -> Engine:
        folder = tmp_path / family
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
        small = {"max_model_len": 256, "max_num_seqs": 20, "max_num_batched_tokens": 256}
        limits = {"kv_cache_memory_bytes": "64MiB", "device": "cuda", "dtype": "bfloat16", "tune": "off"}
        config = {"load_format": "dummy", "jit_monitor_mode": "error", **small, **limits, **wishes}
        engines.append(startup.start(EngineConfig(model=str(folder), **config)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
