"""Fetch a checkpoint from the hub as a phase of start-up, where it is not here already."""

import time

from hotstart.config.engine import EngineConfig
from hotstart.config.hub import fetch, is_here
from hotstart.engine.memory import as_size
from hotstart.engine.phases import OnPhase, Phase, PhaseProgress

__all__ = ["PHASE", "download"]

PHASE = "download"


def download(config: EngineConfig, on_phase: OnPhase) -> EngineConfig:
    """The same wishes, of folders.  Raises CheckpointError.  `on_phase` is called from several threads."""
    if is_here(config):
        return fetch(config)  # which looks whether it is a checkpoint at all
    began, size = time.monotonic(), 0

    def tell(done: int, total: int) -> None:
        nonlocal size
        size = total
        on_phase(PhaseProgress(PHASE, done, total, f"{as_size(done)} of {as_size(total)}"))

    on_phase(PhaseProgress(PHASE))
    config = fetch(config, tell)
    fetched = f"{as_size(size)} to " if size else ""
    on_phase(Phase(PHASE, time.monotonic() - began, 0, f"{fetched}{config.model}"))
    return config
