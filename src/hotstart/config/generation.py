"""What a checkpoint's generation_config.json recommends to whoever leaves a choice open."""

from pathlib import Path

from hotstart.config.files import read_optional_json
from hotstart.request import SamplingParams

__all__ = ["read_sampling_defaults"]


def read_sampling_defaults(folder: Path) -> SamplingParams:
    advice = read_optional_json(folder / "generation_config.json")
    if advice.get("do_sample") is False:
        return SamplingParams(temperature=0.0)
    names = ("temperature", "top_k", "top_p")
    return SamplingParams(**{name: advice[name] for name in names if advice.get(name) is not None})
