"""What a checkpoint's generation_config.json recommends to whoever leaves a choice open."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotstart.config.files import read_optional_json
from hotstart.errors import ConfigError
from hotstart.request import SamplingParams

__all__ = ["read_sampling_defaults"]

NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_sampling_defaults(
    folder: Path, source: str = "auto", overrides: Mapping[str, Any] | None = None
) -> SamplingParams:
    """`source` is "auto" for the checkpoint's own, "vllm" for none, or another folder; `overrides` count more."""
    if source not in ("auto", "vllm"):
        folder = Path(source)
        if not (folder / "generation_config.json").is_file():
            raise ConfigError(f"--generation-config: {source} has no generation_config.json; or say auto or vllm")
    advice = {} if source == "vllm" else read_optional_json(folder / "generation_config.json")
    unknown = set(overrides or {}) - {*NAMES, "do_sample"}
    if unknown:
        raise ConfigError(f"--override-generation-config: {min(unknown)} is none of {', '.join(NAMES)}")
    advice |= overrides or {}
    if advice.get("do_sample") is False:
        return SamplingParams(temperature=0.0)
    return SamplingParams(**{name: advice[name] for name in NAMES if advice.get(name) is not None})
