"""Engines with tiny random models, closed when the test ends."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import CONFIGS

from hotstart.config.engine import EngineConfig
from hotstart.engine import sampler, startup
from hotstart.engine.engine import Engine
from hotstart.kernels.ops import Ops
from hotstart.kernels.sampling import SamplingRows


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
    return {name: root / name for name in CONFIGS}


StartEngine = Callable[..., Engine]


@pytest.fixture
def start_engine(folders: dict[str, Path]) -> Iterator[StartEngine]:
    """start_engine(family, **wishes): strict, small, with random weights."""
    engines = []

    def make(family: str = "dense", **wishes: object) -> Engine:
        small = {"max_model_len": 96, "max_num_seqs": 6, "max_num_batched_tokens": 64}
        config = {"load_format": "dummy", "jit_monitor_mode": "error", **small, **wishes}
        engines.append(startup.start(EngineConfig(model=str(folders[family]), **config)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def seen_logits(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], torch.Tensor]:
    """The raw logits that engines started from now on sample from, by (seed, position)."""
    found: dict[tuple[int, int], torch.Tensor] = {}
    init = sampler.Sampler.__init__

    def recording_init(self: sampler.Sampler, logits: object, ops: Ops, *rest: object) -> None:
        def sample(rows_of_logits: torch.Tensor, rows: SamplingRows, history: torch.Tensor) -> torch.Tensor:
            for row, key in enumerate(zip(rows.seed.tolist(), rows.position.tolist(), strict=True)):
                found[key] = rows_of_logits[row].clone()
            return ops.sample(rows_of_logits, rows, history)

        init(self, logits, dataclasses.replace(ops, sample=sample), *rest)

    monkeypatch.setattr(sampler.Sampler, "__init__", recording_init)
    return found
